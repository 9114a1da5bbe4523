"""Who may call: the client behind a TLS certificate, looked at again for every request."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pkix.crl import RevocationReason
from pkix.names import SerialNumber
from server.app import Parts
from server.auth import clients as clients_module
from server.auth.clients import Client
from server.errors import NotAuthenticated
from server.issuance.order import Order
from tests.support.authority import MINISTRY, MovableClock, Prepared, Table, authority, prepare, software_config
from tests.support.ca import make_ca, make_csr
from tests.support.profiles import TLS_CLIENT

POST = Client(name="post", profiles=("tls-server",), names=("*.post.gov",))


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        yield opened


async def client_certificate(parts: Parts, *, enrol: bool = True) -> tuple[SerialNumber, bytes]:
    """Issue a client certificate and pin its key to POST."""
    key = ec.generate_private_key(ec.SECP256R1())
    order = Order(client=MINISTRY, profile=TLS_CLIENT, csr=make_csr("post", key=key), request_id="test")
    issued = await parts.issuance.issue(order)
    if enrol:
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        await parts.clients.enrol(POST, hashlib.sha256(spki).digest())
    return issued.serial, issued.certificate_der


async def test_known_client_is_found_and_remembered_for_a_second_only(
    parts: Parts, clock: MovableClock, tmp_path: Path
) -> None:
    _, der = await client_certificate(parts)
    assert await parts.clients.identify(der) == POST
    Table(tmp_path).rows("update clients set disabled = 1 where name = 'post'")
    assert await parts.clients.identify(der) == POST
    clock.advance(seconds=1)
    with pytest.raises(NotAuthenticated, match="no active client"):
        await parts.clients.identify(der)


async def test_revoked_certificate_is_refused_on_connections_that_are_open(
    parts: Parts, clock: MovableClock
) -> None:
    serial, der = await client_certificate(parts)
    await parts.clients.identify(der)
    await parts.revocation.revoke(serial, RevocationReason.KEY_COMPROMISE, client=MINISTRY.name, request_id="r")
    clock.advance(seconds=1)
    with pytest.raises(NotAuthenticated, match="not a valid certificate"):
        await parts.clients.identify(der)


async def test_expired_certificate_is_refused_on_connections_that_are_open(
    parts: Parts, clock: MovableClock
) -> None:
    _, der = await client_certificate(parts)
    clock.advance(days=365)
    with pytest.raises(NotAuthenticated, match="expired"):
        await parts.clients.identify(der)


async def test_strangers_are_told_apart_by_nothing_but_their_detail(parts: Parts) -> None:
    _, unknown = await client_certificate(parts, enrol=False)
    for certificate, detail in [
        (None, "no client certificate"),
        (unknown, "no active client"),
        (make_ca().issuer.certificate_der, "no active client"),
    ]:
        with pytest.raises(NotAuthenticated, match=detail) as caught:
            await parts.clients.identify(certificate)
        assert caught.value.remedy


async def test_pinned_key_in_a_certificate_of_another_ca_is_refused(parts: Parts) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    await parts.clients.enrol(POST, hashlib.sha256(spki).digest())
    foreign = make_ca(key, now=parts.clock()).issuer.certificate_der
    assert isinstance(x509.load_der_x509_certificate(foreign).public_key(), ec.EllipticCurvePublicKey)
    with pytest.raises(NotAuthenticated, match="not a valid certificate of this CA"):
        await parts.clients.identify(foreign)


async def test_what_is_remembered_is_bounded(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module, "_REMEMBERED_MAX", 2)
    for _ in range(5):
        _, der = await client_certificate(parts)
        await parts.clients.identify(der)
        assert len(parts.clients._remembered) <= 2
