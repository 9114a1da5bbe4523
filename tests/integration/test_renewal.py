"""Renewal: the same holder, subject and names, once; decided in the issuing transaction."""

import asyncio
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ocsp.errors import StoreError
from ocsp.store import Status
from pkix.crl import RevocationReason
from pkix.names import SerialNumber, serial_hex
from server.app import Parts
from server.auth.clients import Client
from server.clock import epoch
from server.errors import AlreadyRenewed, NotFound, NotPermitted, Overloaded, RenewalRefused, StorageError
from server.issuance.catalogue import Catalogue
from server.issuance.order import IssuedCertificate
from server.issuance.records import IssuanceRecords
from server.issuance.replay import Replay
from server.issuance.succession import Succession
from server.keys.hierarchy import ISSUING
from server.renewal.service import Renewals
from tests.support.authority import (
    MINISTRY,
    MovableClock,
    Prepared,
    Table,
    authority,
    order,
    prepare,
    software_config,
    stored_status,
)
from tests.support.ca import make_csr

ORGANIZATION = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "ກະຊວງການເງິນ")
NAMES = (x509.DNSName("a.example.gov"), x509.DNSName("b.example.gov"))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def prepared(home: Path) -> Prepared:
    return prepare(software_config(home))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        yield opened


@pytest.fixture
def renewals(parts: Parts) -> Renewals:
    return Renewals(
        catalogue=Catalogue(parts.database, ISSUING),
        issuance=parts.issuance,
        profiles=parts.profiles,
        settings=parts.config.renewal,
    )


async def issued(parts: Parts, key: ec.EllipticCurvePrivateKey | None = None) -> IssuedCertificate:
    csr = make_csr("a.example.gov", names=NAMES, extra=(ORGANIZATION,), key=key)
    return await parts.issuance.issue(order(csr=csr))


async def renew(
    renewals: Renewals,
    old: IssuedCertificate,
    csr: bytes | None = None,
    *,
    client: Client = MINISTRY,
    key: str | None = None,
) -> IssuedCertificate:
    return await renewals.renew(
        serial_hex(old.serial), client=client, csr=csr or make_csr(None), request_id="test", idempotency_key=key
    )


def same_names(one: IssuedCertificate, other: IssuedCertificate) -> bool:
    first, second = (x509.load_der_x509_certificate(c.certificate_der) for c in (one, other))
    kind = x509.SubjectAlternativeName
    return (first.subject, first.extensions.get_extension_for_class(kind).value) == (
        second.subject,
        second.extensions.get_extension_for_class(kind).value,
    )


async def test_successor_has_subject_and_names_whether_the_csr_repeats_them_or_not(
    parts: Parts, renewals: Renewals, home: Path
) -> None:
    old = await issued(parts)
    bare = await renew(renewals, old)
    whole = await renew(renewals, bare, make_csr("a.example.gov", names=NAMES[::-1], extra=(ORGANIZATION,)))
    assert same_names(old, bare)
    assert same_names(old, whole)
    rows = Table(home).rows("select serial, renews from certificates where renews is not null order by id")
    assert rows == [
        (serial_hex(bare.serial), serial_hex(old.serial)),
        (serial_hex(whole.serial), serial_hex(bare.serial)),
    ]


async def test_a_renewal_is_replayed_with_the_names_of_its_predecessor(
    parts: Parts, renewals: Renewals, clock: MovableClock
) -> None:
    await renew(renewals, await issued(parts))
    replay = Replay(
        profile=parts.profiles.named("tls-server"),
        issuer=parts.issuance._issuer,
        issuer_label=ISSUING,
        backdate=dt.timedelta(minutes=5),
        registry=parts.profiles,
        now=clock(),
        limit=2,
    )
    assert [found async for found in replay.run(parts.database)] == [None, None]
    without_o = tuple(rule for rule in replay.profile.subject if rule.kind.name != "O")
    replay = dataclasses.replace(replay, profile=dataclasses.replace(replay.profile, subject=without_o))
    refusals = [found.refusal if found else "" async for found in replay.run(parts.database)]
    assert len(refusals) == sum("subject attribute O is not allowed" in refusal for refusal in refusals) == 2


async def test_csr_that_asks_for_something_else_is_refused(parts: Parts, renewals: Renewals, home: Path) -> None:
    old = await issued(parts)
    for csr in (
        make_csr("c.example.gov"),
        make_csr("a.example.gov"),  # without O
        make_csr(None, names=NAMES[:1]),
        make_csr(None, names=(*NAMES, x509.DNSName("c.example.gov"))),
        make_csr(None, names=(*NAMES, x509.RFC822Name("a@example.gov"))),
        make_csr(None, names=(*NAMES, x509.RegisteredID(NameOID.COMMON_NAME))),
    ):
        with pytest.raises(RenewalRefused, match=r"the CSR has (an)?other") as refused:
            await renew(renewals, old, csr)
        assert refused.value.field == "csr"
    assert Table(home).states() == ["issued"]


async def test_only_the_holder_renews_and_only_what_it_may_still_ask_for(parts: Parts, renewals: Renewals) -> None:
    old = await issued(parts)
    with pytest.raises(NotFound):
        await renew(renewals, old, client=Client(name="other", profiles=("*",), names=("*",)))
    with pytest.raises(NotPermitted, match="its organizations do not hold it"):
        await renew(renewals, old, client=Client(name="ministry", profiles=("*",), names=("*",)))


async def test_revoked_certificate_is_not_renewed(parts: Parts, renewals: Renewals) -> None:
    old = await issued(parts)
    await parts.revocation.revoke(
        SerialNumber(old.serial), RevocationReason.SUPERSEDED, client="ministry", request_id="test"
    )
    with pytest.raises(RenewalRefused, match="is revoked"):
        await renew(renewals, old)


async def test_expired_certificate_is_renewed_within_the_days_of_grace(
    parts: Parts, renewals: Renewals, clock: MovableClock
) -> None:
    first, second = await issued(parts), await issued(parts)
    clock.now = first.not_after
    clock.advance(days=30)
    assert same_names(first, await renew(renewals, first))
    clock.advance(seconds=1)
    with pytest.raises(RenewalRefused, match="more than 30 days ago"):
        await renew(renewals, second)


async def test_of_many_renewals_at_once_one_succeeds(parts: Parts, renewals: Renewals, home: Path) -> None:
    old = await issued(parts)

    async def attempt() -> IssuedCertificate | AlreadyRenewed | Overloaded:
        try:
            return await renew(renewals, old)
        except (AlreadyRenewed, Overloaded) as error:
            return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt()) for _ in range(8)]
    answers = [task.result() for task in tasks]
    assert sum(isinstance(answer, IssuedCertificate) for answer in answers) == 1
    assert Table(home).states() == ["issued", "issued"]


async def test_second_renewal_in_one_batch_is_refused_alone(parts: Parts, home: Path, clock: MovableClock) -> None:
    renewing = dataclasses.replace(order(), renews=serial_hex((await issued(parts)).serial))
    twins = [await parts.issuance.prepare(renewing) for _ in range(2)]
    records = IssuanceRecords(parts.database, ISSUING, [Succession(ISSUING, grace_days=0).check])
    refused = await records.record_intents(twins, epoch(clock()))
    assert [(index, type(error)) for index, error in refused.items()] == [(1, Overloaded)]
    assert Table(home).states() == ["issued", "intent"]


async def test_repeated_renewal_gets_its_successor_even_when_the_old_one_is_revoked_by_then(
    parts: Parts, renewals: Renewals
) -> None:
    old, csr = await issued(parts), make_csr(None)
    first = await renew(renewals, old, csr, key="once")
    await parts.revocation.revoke(
        SerialNumber(old.serial), RevocationReason.SUPERSEDED, client="ministry", request_id="test"
    )
    for key in ("once", None):
        again = await renew(renewals, old, csr, key=key)
        assert again.replayed
        assert again.certificate_der == first.certificate_der


async def test_renewal_that_failed_can_be_done_again(parts: Parts, renewals: Renewals, home: Path) -> None:
    old, table = await issued(parts), Table(home)
    table.fail("update of der on certificates")
    with pytest.raises(StorageError):
        await renew(renewals, old)
    table.mend()
    await renew(renewals, old)
    assert table.states() == ["issued", "abandoned", "issued"]


async def test_key_may_be_kept_unless_the_settings_forbid_it(parts: Parts, renewals: Renewals) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    old = await issued(parts, key)
    strict = Renewals(
        catalogue=renewals.catalogue,
        issuance=renewals.issuance,
        profiles=renewals.profiles,
        settings=msgspec.structs.replace(renewals.settings, reuse_key=False),
    )
    with pytest.raises(RenewalRefused, match="has the key of certificate"):
        await renew(strict, old, make_csr(None, key=key))
    assert same_names(old, await renew(renewals, old, make_csr(None, key=key)))


async def test_batch_mates_of_a_refused_renewal_are_served(parts: Parts, renewals: Renewals) -> None:
    old = await issued(parts)
    await renew(renewals, old)
    async with asyncio.TaskGroup() as group:
        others = [group.create_task(issued(parts)) for _ in range(5)]
        refused = group.create_task(_refusal(renewals, old))
    assert isinstance(refused.result(), AlreadyRenewed)
    assert len({task.result().serial for task in others}) == 5


async def _refusal(renewals: Renewals, old: IssuedCertificate) -> Exception:
    try:
        await renew(renewals, old)
    except RenewalRefused as error:
        return error
    raise AssertionError("was renewed twice")


async def test_renewal_that_is_repeated_after_a_fault_has_its_ocsp_answer_too(
    parts: Parts, renewals: Renewals, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, csr = await issued(parts), make_csr(None)
    with monkeypatch.context() as patch:

        async def faulty(_responses: object) -> NoReturn:
            raise StoreError("no space")

        patch.setattr(parts.publisher, "publish", faulty)
        with pytest.raises(StoreError):
            await renew(renewals, old, csr)
    again = await renew(renewals, old, csr)
    assert again.replayed
    assert await stored_status(parts, again.serial) is Status.GOOD
