"""Issuing, revoking, recovering and keys used twice, on every database: an authority in this process."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, insert, select, text, update

from pkix.crl import RevocationReason
from pkix.errors import KeyRejected
from server.app import Parts
from server.clock import epoch, utc_now
from server.errors import Overloaded, StorageError
from server.issuance import idempotency
from server.issuance.key_checks import refused_keys
from server.issuance.records import LONGEST_BATCH_S
from server.storage.schema import audit_log, certificates, idempotency_keys
from tests.contract.test_database_contract import certificate
from tests.support.authority import MovableClock, Prepared, authority, order, prepare, software_config
from tests.support.postgres import PostgresServer

OTHER = str(uuid.uuid4())


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    settings = {}
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        settings["CERTMILL_STORAGE_DATABASE"] = server.url(server.empty_database())
    return prepare(software_config(tmp_path_factory.mktemp("home"), **settings))


@pytest.fixture
async def parts(prepared: Prepared) -> AsyncIterator[Parts]:
    async with authority(prepared, MovableClock()) as opened:
        yield opened


async def rows(parts: Parts, statement: str) -> list[tuple[object, ...]]:
    async with parts.database.read() as connection:
        return [tuple(row) for row in await connection.execute(text(statement))]


async def add_intent(
    parts: Parts, serial: str, *, owner: str | None, age_s: int = 0, key: str | None = None
) -> None:
    """Leave an intent behind, as a crash does, with its idempotency key (for the order `again`)."""
    now = epoch(utc_now()) - age_s
    intent = certificate(serial, state="intent", der=None, authority=owner, created_at=now)
    async with parts.database.write() as connection:
        await connection.execute(insert(certificates), [intent])
        if key is not None:
            used = {"client": "ministry", "key": key, "issuer": "issuing", "serial": serial, "created_at": now}
            await connection.execute(insert(idempotency_keys), [{**used, "request_sha256": AGAIN.fingerprint()}])


AGAIN = order("again.example.gov")


def again(key: str) -> object:
    return order("again.example.gov", key=key, csr=AGAIN.csr)


async def state(parts: Parts, serial: str) -> str:
    ((found,),) = await rows(parts, f"select state from certificates where serial = '{serial}'")
    return str(found)


async def test_a_certificate_its_key_its_revocation_and_its_crl(parts: Parts) -> None:
    one = order("whole.example.gov", key="whole")
    issued = [(await parts.issuance.issue(one)).serial for _ in range(2)]
    assert issued[0] == issued[1]
    crl = parts.crl_publishers[1]
    number = await crl.publish()
    revocation = await parts.revocation.revoke(
        issued[0], RevocationReason.SUPERSEDED, client="ministry", request_id="r"
    )
    assert revocation.answer_published
    assert await crl.publish() == number + 1
    entries = await rows(parts, f"select entries from crls where issuer = 'issuing' and number = {number + 1}")
    assert entries == [(1,)]
    plans, _ = await parts.commitments.collect()
    assert plans
    await parts.refresher.refresh_once()
    await parts.refresher.measure()
    assert await parts.reconciler.reconcile() == 0


async def test_a_start_closes_what_is_ours_and_what_is_too_old(parts: Parts, prepared: Prepared) -> None:
    me = (prepared.config.home / "authority-id").read_text().strip()
    await add_intent(parts, "a1", owner=me)
    await add_intent(parts, "a2", owner=OTHER)
    await add_intent(parts, "a3", owner=OTHER, age_s=LONGEST_BATCH_S + 60)
    await add_intent(parts, "a4", owner=None, age_s=LONGEST_BATCH_S + 60)
    await parts.issuance.recover()
    closed = "intent" if parts.database.shared else "abandoned"
    assert [await state(parts, s) for s in ("a1", "a2", "a3", "a4")] == [
        "abandoned",
        closed,
        "abandoned",
        "abandoned",
    ]


async def test_a_batch_whose_intent_was_closed_meanwhile_releases_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = parts.pool.sign_many

    async def late(*arguments: object, **named: object) -> object:
        async with parts.database.write() as connection:
            await connection.execute(
                update(certificates).where(certificates.c.state == "intent").values(state="abandoned")
            )
        return await sign(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(parts.pool, "sign_many", late)
    with pytest.raises(StorageError, match="nothing of it is released"):
        await parts.issuance.issue(order("late.example.gov"))
    assert await rows(
        parts, "select count(*) from certificates where subject like '%late%' and state = 'issued'"
    ) == [(0,)]


@pytest.mark.parametrize("prepared", ["postgresql"], indirect=True)  # nobody else is on SQLite
async def test_a_key_that_another_authority_has_is_waited_for(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PATIENCE_S", 1.0)
    await add_intent(parts, "b1", owner=OTHER, key="busy")
    with pytest.raises(Overloaded, match="still working on this Idempotency-Key") as busy:
        await parts.issuance.issue(again("busy"))  # type: ignore[arg-type]
    assert busy.value.retry_after_s > 0
    waiting = asyncio.create_task(parts.issuance.issue(again("busy")))  # type: ignore[arg-type]
    await asyncio.sleep(0.1)
    done = await parts.issuance.issue(order("theirs.example.gov"))
    async with parts.database.write() as connection:
        mine = update(idempotency_keys).where(idempotency_keys.c.key == "busy")
        await connection.execute(mine.values(serial=f"{done.serial:032x}"))
    assert (await waiting).serial == done.serial


async def test_of_two_that_insert_one_key_one_is_first_and_neighbours_do_not_suffer(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked for the key before either had an intent."""
    records = parts.issuance._records
    monkeypatch.setattr(idempotency, "POLL_S", 0.01)
    looked = 0
    find = records.find_key

    async def find_nothing_at_first(client: str, key: str) -> object:
        nonlocal looked
        looked += 1
        if looked == 1:  # and then another authority has a certificate for the key
            await parts.issuance._issue_new(again(key))  # type: ignore[arg-type]
            return None
        return await find(client, key)

    monkeypatch.setattr(records, "find_key", find_nothing_at_first)
    async with asyncio.TaskGroup() as tasks:
        loser = tasks.create_task(parts.issuance.issue(again("race")))  # type: ignore[arg-type]
        neighbours = [tasks.create_task(parts.issuance.issue(order(f"n{n}.example.gov"))) for n in range(5)]
    assert loser.result().replayed
    assert len({task.result().serial for task in neighbours}) == 5
    assert await rows(parts, "select count(*) from idempotency_keys where key = 'race'") == [(1,)]


async def test_every_certificate_has_its_audit_entries(parts: Parts) -> None:
    await parts.issuance.issue(order("audited.example.gov"))
    async with parts.database.read() as connection:
        issued = select(certificates.c.serial).where(
            certificates.c.state == "issued", certificates.c.subject != "CN=a.example.gov"
        )
        serials = set((await connection.execute(issued)).scalars())
        entries = select(audit_log.c.object, func.count()).where(audit_log.c.action == "certificate.issued")
        counted = {row[0]: row[1] for row in await connection.execute(entries.group_by(audit_log.c.object))}
    assert serials
    assert counted == dict.fromkeys(serials, 1)


async def test_a_key_is_not_found_compromised_while_it_is_certified(parts: Parts) -> None:
    wanted = order("compromised.example.gov")
    issued = await parts.issuance.issue(wanted)
    prepared = await parts.issuance.prepare(wanted)
    async with asyncio.TaskGroup() as group, parts.database.write() as connection:
        assert await refused_keys(connection, [prepared], epoch(utc_now())) == {}
        revoking = group.create_task(
            parts.revocation.revoke(
                issued.serial, RevocationReason.KEY_COMPROMISE, client="ministry", request_id="test"
            )
        )
        done, _ = await asyncio.wait([revoking], timeout=0.3)
        assert not done, "it waits for who certifies the key"
    async with parts.database.write() as connection:
        refused = await refused_keys(connection, [prepared], epoch(utc_now()))
    assert "compromised" in str(refused[0])
    with pytest.raises(KeyRejected, match="compromised"):
        await parts.issuance.issue(wanted)
