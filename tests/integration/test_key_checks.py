"""Keys that get no certificate: weak, compromised, the CA's own. Each refusal stands alone in its micro-batch."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pkix.crl import RevocationReason
from pkix.errors import KeyRejected
from server.app import Parts
from server.auth.clients import Client
from server.issuance.key_checks import WeakKeys
from server.issuance.order import IssuedCertificate
from tests.support.authority import MovableClock, Prepared, Table, authority, order, prepare, software_config
from tests.support.ca import make_csr

OTHER = Client(name="other", profiles=("*",), names=("*",))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path, CERTMILL_ISSUANCE_BATCH_AGE_MS="5"))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


async def key_of(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(await asyncio.to_thread(path.read_bytes), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


async def outcome(parts: Parts, csr: bytes, client: Client) -> IssuedCertificate | str:
    try:
        return await parts.issuance.issue(order(csr=csr, client=client))
    except KeyRejected as error:
        return error.detail


async def test_a_compromised_key_is_refused_to_everybody_and_alone_in_its_batch(
    parts: Parts, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = make_csr("a.example.gov", key=key)
    for reason in (RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE):
        issued = await parts.issuance.issue(order(csr=csr))
        await parts.revocation.revoke(issued.serial, reason, client="ministry", request_id="test")
    async with asyncio.TaskGroup() as group:
        good = [group.create_task(outcome(parts, make_csr(f"{n}.example.gov"), OTHER)) for n in range(4)]
        bad = group.create_task(outcome(parts, make_csr("b.example.gov", key=key), OTHER))
        good += [group.create_task(outcome(parts, make_csr(f"1{n}.example.gov"), OTHER)) for n in range(4)]
    assert bad.result() == "the key was revoked as compromised"
    assert all(isinstance(task.result(), IssuedCertificate) for task in good)
    rows = Table(tmp_path).rows("select state, count(*) from certificates where client = 'other' group by state")
    assert rows == [("issued", 8)]  # the refused one has left no intent, and no serial


async def test_keys_of_the_ca_are_its_own(parts: Parts, tmp_path: Path) -> None:
    key = await key_of(tmp_path / "secrets" / "api-key.pem")
    assert await outcome(parts, make_csr("a.example.gov", key=key), OTHER) == "the key is one of the CA's own"
    rows = Table(tmp_path).rows("select distinct request_id from certificates where subject like '%responder%'")
    assert rows == [("-",)]


async def test_the_demo_client_may_renew_with_its_own_key(parts: Parts, tmp_path: Path) -> None:
    key = await key_of(tmp_path / "clients" / "demo" / "key.pem")
    demo = Client(name="demo", profiles=("*",), names=("*",))
    assert isinstance(await outcome(parts, make_csr("a.example.gov", key=key), demo), IssuedCertificate)


def test_keys_that_passed_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from pkix.csr import parse_csr
    from server.issuance import key_checks

    counted: list[object] = []
    monkeypatch.setattr(key_checks, "check_weaknesses", counted.append)
    monkeypatch.setattr(key_checks, "_REMEMBERED", 2)
    requests = [parse_csr(make_csr()) for _ in range(3)]
    keys = WeakKeys()
    for request in (requests[0], requests[0], requests[1], requests[2], requests[2], requests[0]):
        keys.check(request)
    assert len(counted) == 4  # the first was forgotten when the third came
