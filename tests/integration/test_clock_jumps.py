"""A clock that jumps, ahead or back, makes nothing wrong; and what it made wrong is right again once it is mended."""

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from ocsp.store import Status
from pkix.crl import RevocationReason
from server.app import Parts, renew_responder
from server.issuance.order import IssuedCertificate
from tests.support.authority import (
    MovableClock,
    Prepared,
    authority,
    order,
    prepare,
    software_config,
    stored_status,
)


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


async def revoke(parts: Parts, issued: IssuedCertificate) -> None:
    await parts.revocation.revoke(issued.serial, RevocationReason.SUPERSEDED, client="ministry", request_id="test")


async def this_update(parts: Parts, issued: IssuedCertificate) -> int:
    stored = await parts.reconciler.store.get(parts.publisher.presigner.key(issued.serial, "sha1"))
    assert stored is not None
    return stored.this_update


def crl(parts: Parts) -> x509.CertificateRevocationList:
    return x509.load_der_x509_crl((parts.home.public / "crl/issuing.crl").read_bytes())


@pytest.mark.parametrize("jump", [dt.timedelta(minutes=5), dt.timedelta(days=3)], ids=["5 minutes", "3 days"])
@pytest.mark.parametrize("sign", [1, -1], ids=["ahead", "back"])
async def test_a_revocation_is_final_whatever_the_clock_does(
    parts: Parts, clock: MovableClock, jump: dt.timedelta, sign: int
) -> None:
    issued, other = await parts.issuance.issue(order()), await parts.issuance.issue(order("b.example.gov"))
    clock.now += sign * jump
    await revoke(parts, issued)
    assert await stored_status(parts, issued.serial) is Status.REVOKED
    clock.now -= sign * jump
    await revoke(parts, other)
    await parts.refresher.refresh_once()
    await parts.reconciler.reconcile()
    assert await stored_status(parts, issued.serial) is Status.REVOKED
    assert await stored_status(parts, other.serial) is Status.REVOKED
    assert await parts.issuance.issue(order(key="k")) is not None


async def test_answers_from_a_wrong_future_give_way_when_the_clock_is_mended(
    parts: Parts, clock: MovableClock
) -> None:
    issued, revoked = (
        await parts.issuance.issue(order(key="k")),
        await parts.issuance.issue(order("b.example.gov")),
    )
    await revoke(parts, revoked)
    right = clock.now
    clock.advance(days=6)
    while await parts.refresher.refresh_once():
        pass
    assert await this_update(parts, issued) > right.timestamp()
    clock.now = right
    assert await parts.reconciler.reconcile() >= 2
    assert await this_update(parts, issued) == right.timestamp()
    assert await this_update(parts, revoked) == right.timestamp()
    assert await stored_status(parts, revoked.serial) is Status.REVOKED
    assert await parts.reconciler.reconcile() == 0


async def test_a_crl_from_a_wrong_future_is_followed_by_a_right_one_that_lacks_nothing(
    parts: Parts, clock: MovableClock
) -> None:
    _, publisher = parts.crl_publishers
    issued = await parts.issuance.issue(order())
    await revoke(parts, issued)
    right = clock.now
    await publisher.publish()
    number = crl(parts).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    clock.now = issued.not_after + dt.timedelta(days=1)
    await publisher.publish()
    clock.now = right
    assert await publisher.due_at() <= right
    await publisher.publish()
    assert crl(parts).last_update_utc == right
    assert crl(parts).get_revoked_certificate_by_serial_number(issued.serial) is not None
    assert crl(parts).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number + 2
    assert await publisher.due_at() > right


async def test_own_certificates_of_a_wrong_future_are_not_used(parts: Parts, clock: MovableClock) -> None:
    right = clock.now
    clock.advance(days=360)  # everything of ours is renewed
    await renew_responder(parts)
    chain, _ = await parts.own.ensure_api(["localhost"])
    clock.now = right
    await renew_responder(parts)
    assert parts.publisher.presigner.responder.certificate.not_valid_before_utc <= right
    chain, _ = await parts.own.ensure_api(["localhost"])
    assert x509.load_pem_x509_certificate(chain.read_bytes()).not_valid_before_utc <= right
    issued = await parts.issuance.issue(order(key="k"))
    assert await stored_status(parts, issued.serial) is Status.GOOD


async def test_a_key_is_good_for_one_certificate_though_the_clock_goes_back(
    parts: Parts, clock: MovableClock
) -> None:
    wanted = order(key="k")
    first = await parts.issuance.issue(wanted)
    clock.advance(days=-2)
    again = await parts.issuance.issue(wanted)
    assert (again.serial, again.replayed) == (first.serial, True)
