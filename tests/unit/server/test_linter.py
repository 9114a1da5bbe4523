"""What is linted when: every certificate, or one of each shape and a sample; and what is remembered of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from prometheus_client import CollectorRegistry

from pkix.certificate import PreparedCertificate, assemble_certificate
from pkix.errors import ContentRefused, LintError
from server.clock import utc_now
from server.errors import LintUnavailable
from server.linting.exceptions import Exceptions, documented_exceptions, parse_exceptions
from server.linting.findings import Finding, Severity
from server.linting.linter import CertificateLinter, lint_error, placeholder_signature
from server.linting.linters import lint_now
from server.linting.shapes import KnownShapes
from server.metrics import AuthorityMetrics
from server.storage.database import Database
from server.storage.migrate import upgrade
from tests.support.authority import Table, quiet_logger
from tests.support.ca import TestCa, make_ca
from tests.unit.pkix.test_certificate import prepare

SUBJECT = Finding(severity=Severity.ERROR, code="a.b", where="certificate.tbsCertificate.subject.rdnSequence")
ISSUER = Finding(severity=Severity.WARNING, code="c.d", where="certificate.tbsCertificate.issuer.rdnSequence")


class PlayedPool:
    """Answers at once with `findings` or with `error`, unless `held`."""

    def __init__(self) -> None:
        self.linted: list[bytes] = []
        self.findings: list[Finding] = []
        self.error: LintUnavailable | None = None
        self.free = asyncio.Event()
        self.free.set()

    async def lint(self, certificate_der: bytes, linter: str, *, bulk: bool = False) -> list[Finding]:
        self.linted.append(certificate_der)
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return self.findings


@pytest.fixture(scope="module")
def ca() -> TestCa:
    return make_ca()


@pytest.fixture
def metrics() -> AuthorityMetrics:
    return AuthorityMetrics(CollectorRegistry())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    upgrade(tmp_path / "certmill.sqlite")
    return tmp_path


@pytest.fixture
async def database(home: Path) -> AsyncIterator[Database]:
    async with Database(home / "certmill.sqlite") as opened:
        yield opened


@pytest.fixture
def pool() -> PlayedPool:
    return PlayedPool()


async def make_linter(
    pool: PlayedPool,
    database: Database,
    metrics: AuthorityMetrics,
    *,
    sample: float = 0.0,
    version: str = "1",
    limit: int = 100,
) -> CertificateLinter:
    table = Exceptions()
    shapes = KnownShapes(
        database, table, version=version, clock=utc_now, metrics=metrics, logger=quiet_logger(), limit=limit
    )
    await shapes.recall()
    return CertificateLinter(
        pool,  # type: ignore[arg-type]
        shapes,
        table,
        sample=sample,
        chance=lambda: 0.5,
        metrics=metrics,
        logger=quiet_logger(),
    )


def one(ca: TestCa, name: str = "www.example.gov", **profile: object) -> PreparedCertificate:
    prepared = prepare(ca, common_name=name)
    return replace(prepared, profile=replace(prepared.profile, **({"lint": "shape"} | profile)))  # type: ignore[arg-type]


async def test_of_one_shape_one_is_linted_even_when_many_come_at_once_and_after_a_restart(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa
) -> None:
    linter = await make_linter(pool, database, metrics)
    pool.free.clear()
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(linter.check(one(ca, f"w{number}.example.gov"), ca.issuer))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(pool.linted) == 1
        pool.free.set()
    await linter.check(one(ca, "another.example.gov"), ca.issuer)
    again = await make_linter(pool, database, metrics)
    await again.check(one(ca, "ftp.example.gov"), ca.issuer)
    assert len(pool.linted) == 1
    await again.check(one(ca, "www.example.la"), ca.issuer)  # another shape
    await again.check(one(ca, version=9), ca.issuer)  # another version of the profile
    newer = await make_linter(pool, database, metrics, version="2")
    await newer.check(one(ca), ca.issuer)  # another version of pkilint
    assert len(pool.linted) == 4


async def test_each_is_linted_where_the_profile_says_so_or_its_values_are_not_plain(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa
) -> None:
    linter = await make_linter(pool, database, metrics)
    for _ in range(3):
        await linter.check(one(ca, lint="every"), ca.issuer)
        await linter.check(one(ca, "localhost"), ca.issuer)
        await linter.check(one(ca, linter="none"), ca.issuer)
    assert len(pool.linted) == 6
    read = x509.load_der_x509_certificate(pool.linted[0])
    assert read.signature_algorithm_oid == ca.issuer.certificate.signature_algorithm_oid


async def test_findings_stop_it_name_the_rule_and_make_the_shape_doubtful_for_good(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa
) -> None:
    linter = await make_linter(pool, database, metrics)
    pool.findings = [SUBJECT]
    with pytest.raises(
        ContentRefused, match=r"pkilint \(pkix\): ERROR a\.b at certificate\.tbsCertificate\.subject"
    ):
        await linter.check(one(ca), ca.issuer)
    pool.findings = []
    for again in (linter, await make_linter(pool, database, metrics)):
        await again.check(one(ca), ca.issuer)
        await again.check(one(ca), ca.issuer)
    assert len(pool.linted) == 5  # each, although the later ones were good


async def test_those_who_wait_for_a_lint_that_fails_are_linted_themselves(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa
) -> None:
    linter = await make_linter(pool, database, metrics)
    pool.error = LintUnavailable("gone")
    pool.free.clear()
    tasks = [asyncio.ensure_future(linter.check(one(ca), ca.issuer)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    pool.free.set()
    outcomes = await asyncio.wait_for(asyncio.wait(tasks), 5)
    assert [type(task.exception()) for task in outcomes[0]] == [LintUnavailable] * 3
    pool.error = None
    await linter.check(one(ca), ca.issuer)
    assert len(pool.linted) == 4


async def test_a_sample_with_findings_ends_the_trust_in_its_shape(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa
) -> None:
    linter = await make_linter(pool, database, metrics, sample=0.9)
    await linter.check(one(ca), ca.issuer)
    pool.error = LintUnavailable("gone")
    await linter.check(one(ca), ca.issuer)  # it was linted before: the sample alone is missed
    assert metrics.linted.labels("pkix", "unsampled")._value.get() == 1
    pool.error, pool.findings = None, [SUBJECT, ISSUER]
    with pytest.raises(LintError) as refused:
        await linter.check(one(ca), ca.issuer)
    assert not isinstance(refused.value, ContentRefused)  # the issuer's name is not the request's
    pool.findings = []
    await linter.check(one(ca), ca.issuer)
    never = await make_linter(pool, database, metrics, sample=0.1)
    await never.check(one(ca), ca.issuer)
    assert len(pool.linted) == 5


async def test_shapes_beyond_the_bound_are_linted_each_time_and_a_broken_database_stops_nobody(
    pool: PlayedPool, database: Database, metrics: AuthorityMetrics, ca: TestCa, home: Path
) -> None:
    linter = await make_linter(pool, database, metrics, limit=1)
    await asyncio.to_thread(Table(home).fail, "insert on linted_shapes")
    for _ in range(2):
        await linter.check(one(ca, "www.example.gov"), ca.issuer)
        await linter.check(one(ca, "www.example.la"), ca.issuer)
    assert len(pool.linted) == 3


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "P-384", "P-521", "RSA", "Ed25519"],
)
def test_a_placeholder_has_the_size_of_a_signature(key: ec.EllipticCurvePrivateKey) -> None:
    authority = make_ca(key)
    placeholder = placeholder_signature(authority.issuer)
    real = max(len(authority.sign(b"tbs")) for _ in range(20))
    assert abs(len(placeholder) - real) <= 4
    if isinstance(key, ec.EllipticCurvePrivateKey):
        decode_dss_signature(placeholder)


def test_many_findings_are_counted() -> None:
    assert str(lint_error([SUBJECT] * 7, "etsi")).endswith("; and 2 more")


def test_an_exception_covers_its_finding_profile_and_linter_and_never_a_fatal_one() -> None:
    table = parse_exceptions(
        b"[[exception]]\nlinter='etsi'\ncode='a.b'\nprofile='company'\n"
        b"reason='because it is right so, for a reason'\nsource='the document that says so, with its clause'"
    )
    assert table.stopping([SUBJECT], linter="etsi", profile="company") == []
    assert table.stopping([SUBJECT], linter="etsi", profile="device") == [SUBJECT]
    assert table.stopping([SUBJECT], linter="pkix", profile="company") == [SUBJECT]
    fatal = msgspec.structs.replace(SUBJECT, severity=Severity.FATAL)
    notice = msgspec.structs.replace(SUBJECT, severity=Severity.NOTICE)
    assert table.stopping([fatal, notice], linter="etsi", profile="company") == [fatal]
    assert table.digest != Exceptions().digest
    with pytest.raises(msgspec.ValidationError):
        parse_exceptions(b"[[exception]]\nlinter='etsi'\ncode='a.b'\nprofile='*'\nreason='so'\nsource='?'")


def test_lint_now_is_for_those_who_have_no_processes(ca: TestCa) -> None:
    prepared = one(ca, "localhost")
    raw = assemble_certificate(prepared, ca.issuer, ca.sign(prepared.tbs))
    assert lint_now(raw, "pkix", profile="tls-server", exceptions=documented_exceptions()) == []
    found = lint_now(raw, "pkix", profile="tls-server", exceptions=Exceptions())
    assert [f.code for f in found] == ["pkix.invalid_domain_name_syntax"]
    smime = lint_now(raw, "cabf-smime", profile="x", exceptions=Exceptions())
    assert [f.code for f in smime] == ["certmill.certificate_type_unknown"]
