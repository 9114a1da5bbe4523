"""Two authorities, each with a home and an OCSP worker of its own, on one PostgreSQL, one token, one response store."""

import json
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from signer_pool.token_init import initialise_token
from tests.support.ca import make_csr
from tests.support.certmill import Reply, RunningCertmill, certmill
from tests.support.ocsp_client import ask, ocsp_request_der
from tests.support.postgres import PASSWORD, PostgresServer
from tests.unit.signer_pool.lanes import MODULE, PIN, SO_PIN

CRL_DEADLINE_S = 40.0


@dataclass
class Pair:
    """The two, and the database behind them."""

    authorities: tuple[RunningCertmill, RunningCertmill]
    postgres: PostgresServer
    database: str

    def issue(self, at: int, csr: bytes, key: str | None = None) -> Reply:
        """Ask one of them; while it is busy with something else, again, as clients do."""
        deadline = time.monotonic() + 60
        while True:
            headers = {} if key is None else {"Idempotency-Key": key}
            body: dict[str, object] = {"profile": "tls-server", "csr": csr.decode()}
            reply = self.authorities[at].api("POST", "/v1/certificates", body, headers, context=self.context)
            if reply.status != 503 or time.monotonic() > deadline:
                return reply
            time.sleep(min(1, int(reply.headers["retry-after"])))

    @property
    def context(self) -> ssl.SSLContext:
        return next(one.tls() for one in self.authorities if (one.home / "clients/demo/cert.pem").exists())

    def sql(self, statement: str) -> list[list[str]]:
        return [line.split("|") for line in self.postgres.sql(statement, self.database).splitlines()]

    def issuing(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.authorities[0].home / "ca/issuing.pem").read_bytes())

    def status(self, at: int, certificate: x509.Certificate) -> ocsp.OCSPCertStatus:
        """Ask a worker."""
        answer = ask(self.authorities[at], ocsp_request_der(certificate, self.issuing()))
        assert answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL, answer.response_status
        return answer.certificate_status


def crl(running: RunningCertmill) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl(running.public("GET", "/crl/issuing.crl").body)


def number(found: x509.CertificateRevocationList) -> int:
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


@pytest.fixture(scope="module")
def pair(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Started at the same moment, on an empty database, with an empty token."""
    directory = tmp_path_factory.mktemp("pair")
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    initialise_token(MODULE, "shared", SO_PIN, PIN, {"SOFTHSM2_CONF": str(conf)})
    for name, secret in (("pin", PIN), ("password", PASSWORD)):
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(secret + "\n")
    database = postgres.empty_database()
    user = f"user_{database}"
    escaped = PASSWORD.replace("'", "''")
    postgres.sql(f"create role {user} login password '{escaped}'; alter database {database} owner to {user}")
    settings = {
        "SOFTHSM2_CONF": str(conf),
        "CERTMILL_TOKENS": f"pkcs11:token=shared?module-path={MODULE}&pin-source=file:{directory}/pin",
        "CERTMILL_STORAGE_DATABASE": postgres.tcp_url(database, user=user),
        "CERTMILL_STORAGE_PASSWORD": f"file:{directory}/password",
        "CERTMILL_OCSP_STORE": str(directory / "responses"),
        "CERTMILL_LISTEN_PUBLIC_URL": "http://pki.test",
    }
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        running = list(
            threads.map(lambda n: stack.enter_context(certmill(directory / n, **settings)), ("one", "two"))
        )
        yield Pair((running[0], running[1]), postgres, database)


def test_two_that_start_at_once_make_one_hierarchy_and_one_demo_client(pair: Pair) -> None:
    assert pair.sql("select count(*) from issuers") == [["2"]]
    assert pair.sql(
        "select count(*) from certificates where profile like 'ca-%' or profile like 'subordinate-ca%'"
    ) == [["2"]]
    assert pair.sql("select count(*) from certificates where profile like 'ocsp-responder%'") == [["1"]]
    assert pair.sql("select name from clients") == [["demo"]]
    first, second = (one.home for one in pair.authorities)
    assert (first / "ca/chain.pem").read_bytes() == (second / "ca/chain.pem").read_bytes()
    ids = {(home / "authority-id").read_text().strip() for home in (first, second)}
    assert {row[0] for row in pair.sql("select id from authorities")} == ids
    assert len(ids) == 2


def test_the_password_is_nowhere_to_be_seen(pair: Pair) -> None:
    for one in pair.authorities:
        assert PASSWORD not in one.log.read_text()
        for pid in one.pids("."):
            for what in ("cmdline", "environ"):
                assert PASSWORD.encode() not in Path(f"/proc/{pid}/{what}").read_bytes()


def test_work_at_both_is_done_once_and_known_at_both(pair: Pair) -> None:
    csrs = [make_csr(f"n{number}.example.gov") for number in range(24)]

    def keyed(n: int, at: int) -> tuple[int, Reply]:
        return n, pair.issue(at, csrs[n], key=f"key-{n}")

    def plain(n: int, at: int) -> tuple[int, Reply]:
        reply = pair.issue(at, csrs[n])
        assert reply.status == 201, reply.body
        # Before the call returned, the worker of the other one knew it; and a revocation there is seen here.
        certificate = x509.load_pem_x509_certificate(reply.json["certificate"].encode())
        assert pair.status(1 - at, certificate) is ocsp.OCSPCertStatus.GOOD
        if n % 3 == 0:
            path = f"/v1/certificates/{reply.json['serial']}/revocation"
            revoked = pair.authorities[1 - at].api("POST", path, {"reason": "superseded"}, context=pair.context)
            assert revoked.status == 200, revoked.body
            assert pair.status(at, certificate) is ocsp.OCSPCertStatus.REVOKED
        return n, reply

    with ThreadPoolExecutor(12) as threads:
        work = [threads.submit(keyed, n, at) for n in range(len(csrs)) for at in (0, 1)]
        work += [threads.submit(plain, n, at) for n in range(len(csrs)) for at in (0, 1)]
        replies = [one.result() for one in work]
    half = len(replies) // 2
    assert {reply.status for _, reply in replies} <= {200, 201}, Counter(r.status for _, r in replies)
    by_key: dict[int, set[str]] = {}
    for n, reply in replies[:half]:
        by_key.setdefault(n, set()).add(reply.json["serial"])
    assert all(len(serials) == 1 for serials in by_key.values()), "one key, two certificates"
    acknowledged = [reply.json["serial"] for _, reply in replies[half:]] + [s for (s,) in by_key.values()]
    assert len(set(acknowledged)) == len(acknowledged) == 3 * len(csrs)
    listed = ",".join(f"'{serial}'" for serial in acknowledged)
    assert pair.sql(f"select state, count(*) from certificates where serial in ({listed}) group by 1") == [
        ["issued", str(len(acknowledged))]
    ]
    entries = pair.sql(
        "select count(*), count(distinct object) from audit_log "
        f"where action = 'certificate.issued' and object in ({listed})"
    )
    assert entries == [[str(len(acknowledged))] * 2]
    assert pair.sql("select count(*) from certificates where state = 'intent'") == [["0"]]
    used = pair.sql(f"select count(distinct authority) from certificates where serial in ({listed})")
    assert used == [["2"]], "both have issued"


def test_crls_of_both_have_one_row_of_numbers_and_never_forget(pair: Pair) -> None:
    for at in (0, 1):  # the test before this one may run in another worker
        serial = pair.issue(at, make_csr(f"revoked{at}.example.gov")).json["serial"]
        path = f"/v1/certificates/{serial}/revocation"
        assert pair.authorities[at].api("POST", path, {"reason": "superseded"}, context=pair.context).status == 200
    revoked = {row[0] for row in pair.sql("select serial from certificates where revoked_at is not null")}
    deadline = time.monotonic() + CRL_DEADLINE_S
    while True:
        served = [crl(one) for one in pair.authorities]
        if number(served[0]) == number(served[1]) and all(
            {f"{entry.serial_number:x}" for entry in one} == {s.lstrip("0") for s in revoked} for one in served
        ):
            break
        assert time.monotonic() < deadline, [number(one) for one in served]
        time.sleep(0.1)
    rows = pair.sql(
        "select number, encode(der, 'hex') from crls where issuer = 'issuing' and der is not null order by number"
    )
    before: set[int] = set()
    for text, der in rows:
        found = x509.load_der_x509_crl(bytes.fromhex(der))
        assert number(found) == int(text)
        entries = {entry.serial_number for entry in found}
        assert before <= entries, "a higher number with an older view"
        before = entries


def test_a_home_with_another_response_store_is_refused(pair: Pair, tmp_path: Path) -> None:
    settings = {**pair.authorities[0].settings, "CERTMILL_OCSP_STORE": str(tmp_path / "elsewhere")}
    third = RunningCertmill(tmp_path / "home", settings)
    with pytest.raises(AssertionError, match=r"(?s)ended with 78.*setting ocsp.store: the authority"):
        third.start()


def leads(running: RunningCertmill) -> bool:
    return any(
        json.loads(line)["event"] == "this authority leads"
        for line in running.log.read_text().splitlines()
        if line.startswith("{")
    )


def test_the_other_goes_on_and_leads_when_the_leader_is_killed(pair: Pair) -> None:
    leader = next(n for n, one in enumerate(pair.authorities) if leads(one))
    first, second = pair.authorities[leader], pair.authorities[1 - leader]
    assert not leads(second)
    csr = make_csr("survivor.example.gov")
    issued = pair.issue(leader, csr, key="survivor")
    assert first.process is not None
    for pid in [first.process.pid, *first.pids(".")]:
        subprocess.run(["kill", "-9", str(pid)], check=False)
    first.process.wait(10)
    again = pair.issue(1 - leader, csr, key="survivor")
    assert (again.status, again.json["serial"]) == (201, issued.json["serial"])
    deadline = time.monotonic() + 30
    while not leads(second):
        assert time.monotonic() < deadline, "nobody leads"
        time.sleep(0.1)
