"""What every database does: transactions, counts, upserts, JSON, search, claims. SQLite and a real PostgreSQL."""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence

import pytest
from sqlalchemy import func, insert, select, update

from server.audit.log import AuditEntry, append
from server.auth.clients import Client, ClientRegistry
from server.auth.directory import ClientDirectory
from server.auth.limits import Limits
from server.clock import epoch, utc_now
from server.errors import Conflict, StorageError
from server.issuance.catalogue import Catalogue, CertificateFilter
from server.status import schedule
from server.storage.claims import claim_job, release_job, renew_lease
from server.storage.database import Database
from server.storage.schema import audit_log, certificates, jobs, ocsp_responses
from server.storage.upserts import update_each

NOW = epoch(utc_now())


def certificate(serial: str, **changes: object) -> dict[str, object]:
    """Return a row of an issued certificate."""
    return {
        "issuer": "issuing", "serial": serial, "state": "issued", "profile": "tls-server@1", "client": "ministry",
        "request_id": "r", "subject": "CN=a.example.gov", "dns_names": ["a.example.gov"], "tbs_sha256": b"\0\xff",
        "spki_sha256": b"s" * 32, "not_before": NOW, "not_after": NOW + 86400, "created_at": NOW, "der": b"\0der",
        "revoked_at": None, "reason": None, "asked": None,
    } | changes  # fmt: skip


async def add(database: Database, *rows: dict[str, object]) -> None:
    async with database.write() as connection:
        await connection.execute(insert(certificates), list(rows))


async def serials(database: Database) -> Sequence[str]:
    async with database.read() as connection:
        return (
            (await connection.execute(select(certificates.c.serial).order_by(certificates.c.id))).scalars().all()
        )


async def test_a_block_that_fails_leaves_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(insert(certificates), [certificate("01")])
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):  # not taken for the database's
        await fail()
    await add(database, certificate("02"))
    assert await serials(database) == ["02"]


async def test_a_second_row_of_one_serial_number_is_refused_without_telling_its_values(database: Database) -> None:
    await add(database, certificate("aa11", subject="CN=secret"))
    with pytest.raises(StorageError, match=r"(?i)unique") as refused:
        await add(database, certificate("bb22"), certificate("aa11", subject="CN=secret"))
    assert "secret" not in str(refused.value)
    assert "aa11" not in str(refused.value)
    assert await serials(database) == ["aa11"]


async def test_a_reader_sees_one_moment(database: Database) -> None:
    await add(database, certificate("01"))
    count = select(func.count()).select_from(certificates)
    async with database.read() as connection:
        assert (await connection.execute(count)).scalar_one() == 1
        await add(database, certificate("02"))
        assert (await connection.execute(count)).scalar_one() == 1
    assert await serials(database) == ["01", "02"]


async def test_update_each_counts_what_it_changed(database: Database) -> None:
    await add(database, *(certificate(s, state="intent", der=None) for s in ("01", "02")), certificate("03"))

    async def finish(*rows: str) -> int:
        async with database.write() as connection:
            return await update_each(
                connection,
                certificates,
                [{"issuer": "issuing", "serial": s, "der": b"new\0" + s.encode()} for s in rows],
                match=("issuer", "serial"),
                where=certificates.c.state == "intent",
                values={"state": "issued"},
            )

    assert await finish("01", "02", "03", "04") == 2, "one is issued already, one does not exist"
    assert await finish("01") == 0
    async with database.read() as connection:
        found = (await connection.execute(select(certificates.c.state, certificates.c.der))).all()
    assert sorted(row.der for row in found) == [b"\0der", b"new\x0001", b"new\x0002"]
    assert {row.state for row in found} == {"issued"}


async def test_absent_json_is_null_and_present_json_comes_back(database: Database) -> None:
    asked = {"names": {"dns": ["ນະຄອນ.la"]}, "subject": {"O": "ກະຊວງ “x”"}}
    await add(database, certificate("01", asked=None), certificate("02", asked=asked))
    async with database.read() as connection:
        absent = select(certificates.c.serial).where(certificates.c.asked.is_(None))
        assert (await connection.execute(absent)).scalars().all() == ["01"]
        present = select(certificates.c.asked).where(certificates.c.serial == "02")
        assert (await connection.execute(present)).scalar_one() == asked
    async with database.write() as connection:
        await append(
            connection, NOW, [AuditEntry(actor="a", action="b", object="c", request_id="d", detail=asked)]
        )
        assert (await connection.execute(select(audit_log.c.detail))).scalar_one() == asked


async def test_search_finds_the_same_on_both(database: Database) -> None:
    await add(
        database,
        certificate("01", subject="CN=Alpha,O=ກະຊວງການເງິນ", dns_names=["a.example.gov", "b_c.example.gov"]),
        certificate("02", subject="CN=beta%", dns_names=["bxc.example.gov"], not_after=NOW - 1),
        certificate("03", subject="CN=alphabet", revoked_at=NOW, reason="superseded", profile="tls-client@1"),
        certificate("04", client="other"),
        certificate("05", state="intent"),
    )

    async def found(**wanted: object) -> list[str]:
        catalogue = Catalogue(database, "issuing")
        wish = CertificateFilter(**wanted)  # type: ignore[arg-type]
        return [row.serial for row in await catalogue.page(wish, client="ministry", now=NOW)]

    assert await found() == ["03", "02", "01"]
    assert await found(dns_name="b_c.example.gov") == ["01"], "an underscore is no wildcard"
    assert await found(dns_name="example.gov") == [], "a name is found whole"
    assert await found(subject="ALPHA") == ["03", "01"]
    assert await found(subject="ການເງິນ") == ["01"]
    assert await found(subject="%") == ["02"]
    assert await found(profile="tls-client") == ["03"]
    assert await found(status="revoked") == ["03"]
    assert await found(status="expired") == ["02"]
    assert await found(status="good", limit=1) == ["01"]


async def test_the_schedule_is_kept_by_key(database: Database) -> None:
    await add(database, certificate("01"), certificate("02", revoked_at=NOW, reason="superseded"))
    async with database.read() as connection:
        assert tuple(await schedule.freshness(connection, "issuing", NOW)) == (0, 0, NOW, NOW)
    far = 2**31 + 5  # after 2038

    def row(serial: str, refresh_at: int, next_update: int = far) -> dict[str, object]:
        life = {"this_update": NOW - 10, "next_update": next_update, "refresh_at": refresh_at, "not_after": far}
        return {"issuer": "issuing", "serial": serial, "hash_name": "sha1", **life}

    async with database.write() as connection:
        await schedule.record(connection, [row("02", NOW + 50), row("01", NOW + 50)])
        await schedule.record(connection, [row("01", NOW - 5), row("03", NOW - 9)])
        await schedule.record(connection, [])
    async with database.write() as connection:
        await schedule.hurry(connection, "issuing", ["01", "02"], if_revoked=True)
        assert [r.serial for r in await schedule.due(connection, "issuing", NOW, 10)] == ["02", "01"]
        assert tuple(await schedule.freshness(connection, "issuing", NOW)) == (3, 3, NOW - 10, far)
        gone = await schedule.expired(connection, "issuing", far + 1, 10)
        assert sorted(gone) == [("01", "sha1"), ("02", "sha1"), ("03", "sha1")]
        await schedule.forget(connection, "issuing", gone[:2])
        assert (await connection.execute(select(func.count()).select_from(ocsp_responses))).scalar_one() == 1


async def test_a_client_is_pinned_anew_and_keeps_what_it_may_do(database: Database) -> None:
    registry = ClientRegistry(database, utc_now, issuer_label="issuing")
    directory = ClientDirectory(database, utc_now, operator="operator:me", profiles=["tls-client"])
    await registry.enrol(Client(name="one", profiles=("tls-client",), names=("a.gov",)), b"1" * 32)
    await registry.enrol(Client(name="one", profiles=("*",), names=("*",)), b"2" * 32)
    assert await registry.knows("one")
    assert not await registry.knows("two")
    await add(database, certificate("01", client="one"), certificate("02", client="one", revoked_at=NOW))
    (record,) = await directory.records()
    assert (record.profiles, record.names, record.spki_sha256) == (("tls-client",), ("a.gov",), b"2" * 32)
    assert record.live_certificates == 1
    with pytest.raises(Conflict, match="key is that of the client one"):
        await directory.add("two", b"2" * 32, Limits(profiles=["*"], names=["*"]))


async def test_writers_beside_each_other_lose_nothing(database: Database) -> None:
    await add(database, certificate("01", not_after=0))
    same = certificates.c.serial == "01"

    async def increase() -> None:
        async with database.write() as connection:
            seen = select(certificates.c.not_after).where(same).with_for_update()
            value = (await connection.execute(seen)).scalar_one()
            await connection.execute(update(certificates).where(same).values(not_after=value + 1))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(increase())
    async with database.read() as connection:
        assert (await connection.execute(select(certificates.c.not_after))).scalar_one() == 20


async def test_alone_lets_one_in_at_a_time(database: Database) -> None:
    inside, most = 0, 0

    async def enter() -> None:
        nonlocal inside, most
        async with database.alone("place"):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(enter())
    assert most == 1
    async with database.alone("place"), database.alone("another place"):
        with pytest.raises(StorageError, match="another authority is busy with place"):
            async with database.alone("place", patience_s=0.1):
                raise AssertionError("two are inside")
    async with database.alone("place", patience_s=0.5):
        pass


async def add_jobs(database: Database, *states: str) -> list[str]:
    ids = [secrets.token_hex(16) for _ in states]
    common = {"client": "c", "profile": "tls-server@1", "dry_run": False, "request_id": "r", "rows": 1}
    async with database.write() as connection:
        rows = [
            {"id": i, "state": s, "created_at": NOW + n, **common}
            for n, (i, s) in enumerate(zip(ids, states, strict=True))
        ]
        await connection.execute(insert(jobs), rows)
    return ids


async def claim(database: Database, authority: str, *, at: int = NOW, lease_s: int = 60) -> str | None:
    async with database.write() as connection:
        row = await claim_job(connection, authority=authority, now=at, lease_s=lease_s)
        return None if row is None else str(row.id)


async def test_a_job_has_one_authority_until_its_lease_ends(database: Database) -> None:
    _done, first, second = await add_jobs(database, "done", "queued", "running")
    assert await claim(database, "a") == first
    assert await claim(database, "b") == second
    assert await claim(database, "c") is None
    async with database.write() as connection:
        await release_job(connection, second, authority="a")  # not its own
        assert await renew_lease(connection, second, authority="b", now=NOW, lease_s=-1)  # it stopped renewing
    assert await claim(database, "c", at=NOW + 1) == second
    async with database.write() as connection:
        assert not await renew_lease(connection, second, authority="b", now=NOW, lease_s=60)
        await release_job(connection, first, authority="a")
    assert await claim(database, "b") == first


async def test_two_that_claim_at_once_get_two_jobs(database: Database) -> None:
    ids = await add_jobs(database, *["queued"] * 6)
    async with asyncio.TaskGroup() as tasks:
        claims = [tasks.create_task(claim(database, f"authority-{n}")) for n in range(6)]
    assert sorted(str(task.result()) for task in claims) == sorted(ids)


async def test_a_cancelled_writer_leaves_nothing_and_blocks_nobody(database: Database) -> None:
    written = asyncio.Event()

    async def stay() -> None:
        async with database.write() as connection:
            await connection.execute(insert(certificates), [certificate("01")])
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await written.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await add(database, certificate("01"))
    assert await serials(database) == ["01"]
