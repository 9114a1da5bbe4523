"""What is said about a certificate stays true and fresh, whatever the HSM, the clock and the store do."""

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509

from ocsp.store import Status, StoredResponse
from pkix.crl import RevocationReason
from pkix.names import SerialNumber, serial_hex
from pkix.ocsp_response import CertificateStatus
from server.app import Parts, renew_responder
from server.clock import epoch
from server.errors import Conflict, NotFound, StorageError
from server.revocation.crl_publisher import KEPT
from server.revocation.service import Revocation
from server.status.publisher import Answer, certificate_status
from signer_pool.errors import PoolUnavailable
from signer_pool.pool import Priority
from tests.support.authority import (
    MovableClock,
    Prepared,
    Table,
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
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(software_config(tmp_path))


@pytest.fixture
async def parts(prepared: Prepared, clock: MovableClock) -> AsyncIterator[Parts]:
    async with authority(prepared, clock) as opened:
        yield opened


async def issue(parts: Parts) -> SerialNumber:
    return (await parts.issuance.issue(order())).serial


async def revoke(
    parts: Parts, serial: SerialNumber, reason: RevocationReason = RevocationReason.KEY_COMPROMISE
) -> Revocation:
    return await parts.revocation.revoke(serial, reason, client="ministry", request_id="test")


async def dead(*_arguments: object, **_options: object) -> NoReturn:
    raise PoolUnavailable("no lane")


async def test_good_disappears_at_once_though_the_hsm_is_dead(parts: Parts) -> None:
    serial = await issue(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.pool, "sign_many", dead)
        revocation = await revoke(parts, serial)
        assert not revocation.answer_published
        for name in ("sha1", "sha256"):
            assert await stored_status(parts, serial, name) is Status.REVOCATION_PENDING
    await parts.refresher.refresh_once()
    assert await stored_status(parts, serial) is Status.REVOKED


async def test_a_revocation_during_a_refresh_stays_due(parts: Parts, table: Table) -> None:
    issued = await parts.issuance.issue(order())
    before = Answer(status=CertificateStatus(serial=issued.serial), hash_name="sha1", not_after=2**40)
    text = serial_hex(issued.serial)
    table.rows("update certificates set revoked_at = 1, reason = 'superseded' where serial = ?", text)
    await parts.publisher.answer([before], Priority.REFRESH)  # it read "good" before the revocation
    assert table.rows("select refresh_at from ocsp_responses where serial = ?", text) == [(0,)]


async def test_a_removed_or_narrowed_demo_client_stays_so(parts: Parts, table: Table) -> None:
    table.rows("update clients set names = '[]' where name = 'demo'")
    await parts.own.ensure_demo(parts.clients)
    assert table.rows("select names from clients where name = 'demo'") == [("[]",)]
    table.rows("delete from clients where name = 'demo'")
    await parts.own.ensure_demo(parts.clients)
    assert table.rows("select name from clients where name = 'demo'") == []


async def test_a_refresh_that_read_good_before_the_revocation_does_no_harm(parts: Parts) -> None:
    serial = await issue(parts)
    found = await parts.publisher.status_of(serial)
    assert found is not None
    await revoke(parts, serial)
    late = Answer(status=found[0], hash_name="sha1", not_after=found[1])
    await parts.publisher.answer([late], Priority.REFRESH)
    assert await stored_status(parts, serial) is Status.REVOKED


async def test_revoking_again_is_harmless_and_cannot_change_the_reason(parts: Parts, table: Table) -> None:
    serial = await issue(parts)
    first = await revoke(parts, serial)
    assert await revoke(parts, serial) == first
    with pytest.raises(Conflict):
        await revoke(parts, serial, RevocationReason.SUPERSEDED)
    with pytest.raises(NotFound):
        await parts.revocation.revoke(serial, RevocationReason.SUPERSEDED, client="other", request_id="test")
    assert table.rows("select count(*) from audit_log where action = 'certificate.revoked'") == [(1,)]


async def test_a_revocation_without_its_audit_entry_does_not_happen(parts: Parts, table: Table) -> None:
    serial = await issue(parts)
    table.fail("insert on audit_log")
    with pytest.raises(StorageError):
        await revoke(parts, serial)
    table.mend()
    assert await stored_status(parts, serial) is Status.GOOD
    assert table.rows("select revoked_at from certificates where serial = ?", serial_hex(serial)) == [(None,)]


async def test_responses_are_refreshed_before_half_of_their_life(parts: Parts, clock: MovableClock) -> None:
    serials = [await issue(parts) for _ in range(5)]
    await parts.refresher.refresh_once()
    before = {s: await stored(parts, s) for s in serials}
    clock.advance(hours=96 * 0.39)
    assert await parts.refresher.refresh_once() == 0
    clock.advance(hours=96 * 0.12)
    assert await parts.refresher.refresh_once() >= 5
    for serial in serials:
        fresh = await stored(parts, serial)
        assert fresh.this_update > before[serial].this_update
        assert 8 * 3600 <= fresh.next_update - fresh.this_update <= 10 * 86400
    await parts.refresher.measure()
    assert parts.registry.get_sample_value("certmill_ocsp_overdue_responses") == 0
    assert parts.registry.get_sample_value("certmill_ocsp_oldest_this_update_timestamp_seconds") == epoch(clock())


async def stored(parts: Parts, serial: SerialNumber) -> StoredResponse:
    found = await parts.reconciler.store.get(parts.publisher.presigner.key(serial, "sha1"))
    assert found is not None
    return found


async def test_next_update_never_passes_the_responders_end(parts: Parts, clock: MovableClock) -> None:
    end = parts.publisher.presigner.responder.certificate.not_valid_after_utc
    clock.now = end - dt.timedelta(days=2)
    prepared = parts.publisher.presigner.prepare(certificate_status(1 << 70, None, None), "sha1")
    assert prepared.next_update == end


async def test_the_responder_is_renewed_thirty_days_before_its_end(parts: Parts, clock: MovableClock) -> None:
    first = parts.publisher.presigner.responder.certificate
    await renew_responder(parts)
    assert parts.publisher.presigner.responder.certificate == first
    clock.now = first.not_valid_after_utc - dt.timedelta(days=29)
    await renew_responder(parts)
    second = parts.publisher.presigner.responder.certificate
    assert second.not_valid_after_utc > first.not_valid_after_utc
    assert second.public_key() == first.public_key()
    second.verify_directly_issued_by(parts.hierarchy.issuing.certificate)
    for responder in (first, second):
        assert await stored_status(parts, SerialNumber(responder.serial_number)) is Status.GOOD
    assert parts.metrics.ocsp_repaired._value.get() == 0, "its answer comes with it, not by the comparison"


async def test_the_comparison_finds_what_the_refresher_cannot_see(parts: Parts, table: Table) -> None:
    good, bad = await issue(parts), await issue(parts)
    # Let's Encrypt 2020: rows that the refresh job's own list does not hold.
    table.rows("delete from ocsp_responses where serial = ?", serial_hex(good))
    await parts.reconciler.store.remove_many([parts.publisher.presigner.key(good, "sha1")])
    table.rows("update certificates set revoked_at = 1, reason = 'superseded' where serial = ?", serial_hex(bad))
    assert await parts.refresher.refresh_once() == 0
    assert await parts.reconciler.reconcile() == 2
    assert await stored_status(parts, good) is Status.GOOD
    assert await stored_status(parts, bad) is Status.REVOKED
    assert await parts.reconciler.reconcile() == 0


async def test_answers_for_expired_certificates_end(parts: Parts, clock: MovableClock, table: Table) -> None:
    serial = await issue(parts)
    await revoke(parts, serial)
    clock.advance(days=201)
    await parts.refresher.refresh_once()
    await parts.refresher.drop_expired()
    await parts.refresher.drop_expired()
    assert await stored_status(parts, serial) is None
    assert await stored_status(parts, serial, "sha256") is None
    assert table.rows("select count(*) from ocsp_responses where serial = ?", serial_hex(serial)) == [(0,)]


async def test_a_revoked_certificate_stays_on_one_crl_after_its_expiry(parts: Parts, clock: MovableClock) -> None:
    serial = await issue(parts)
    await revoke(parts, serial)
    publisher = parts.crl_publishers[1]

    async def listed() -> bool:
        await publisher.publish()
        der = (parts.home.public / "crl/issuing.crl").read_bytes()
        return x509.load_der_x509_crl(der).get_revoked_certificate_by_serial_number(serial) is not None

    assert await listed()
    clock.advance(days=199)
    assert await listed()
    clock.advance(days=2)  # expired, and the last CRL was before that
    assert await listed()
    clock.advance(days=1)
    assert not await listed()


async def test_crl_numbers_grow_even_when_signing_fails(parts: Parts) -> None:
    publisher = parts.crl_publishers[1]
    first = await publisher.publish()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.pool, "sign", dead)
        with pytest.raises(PoolUnavailable):
            await publisher.publish()
    assert await publisher.publish() > first + 1


async def test_only_the_last_crls_keep_their_bytes(parts: Parts, table: Table) -> None:
    publisher = parts.crl_publishers[1]
    for _ in range(KEPT + 2):
        last = await publisher.publish()
    kept = table.rows("select number from crls where issuer = 'issuing' and der is not null order by number")
    assert [row[0] for row in kept] == list(range(last - KEPT + 1, last + 1))
    assert len(table.rows("select number from crls where issuer = 'issuing'")) == last


async def test_a_crl_is_due_when_its_file_is_missing_or_its_interval_is_over(
    parts: Parts, clock: MovableClock
) -> None:
    publisher = parts.crl_publishers[1]
    assert await publisher.due_at() == clock() + dt.timedelta(hours=24)
    (parts.home.public / "crl/issuing.crl").unlink()
    assert await publisher.due_at() == clock()


async def test_own_certificates_are_renewed_thirty_days_before_their_end(
    parts: Parts, clock: MovableClock
) -> None:
    names = parts.config.listen.api_names
    chain, _ = await parts.own.ensure_api(names)
    first = chain.read_bytes()
    await parts.own.ensure_api(names)
    assert chain.read_bytes() == first
    clock.advance(days=171)
    await parts.own.ensure_api(names)
    second = chain.read_bytes()
    assert second != first
    await parts.own.ensure_api(("other.gov",))
    assert chain.read_bytes() != second
