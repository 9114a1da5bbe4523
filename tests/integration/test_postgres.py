"""What can go wrong with a PostgreSQL: it restarts, crashes, is set wrongly, is newer, has a password."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update

from server.errors import AlreadyRunning, ConfigError, NotDurable, StorageError
from server.settings.storage import StorageSection
from server.storage.database import Database
from server.storage.migrate import head, revision
from server.storage.place import PostgresPlace, place_of
from server.storage.presence import Identity, Presence
from server.storage.schema import certificates, clients
from tests.contract.test_database_contract import certificate
from tests.support.authority import MovableClock, quiet_logger, software_config
from tests.support.postgres import PASSWORD, PostgresServer


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
async def test_a_restart_fails_what_runs_and_nothing_after_it(
    postgres: PostgresServer, how: signal.Signals
) -> None:
    place = await asyncio.to_thread(postgres.place)
    async with Database(place) as database:
        async with database.write() as connection:
            await connection.execute(insert(certificates), [certificate("01")])

        async def interrupted() -> None:
            async with database.write() as connection:
                await connection.execute(insert(certificates), [certificate("02")])
                await asyncio.to_thread(postgres.restart, how)

        with pytest.raises(StorageError, match="database postgresql://"):
            await interrupted()
        for _ in range(20):  # every pooled connection is dead; each may fail one call
            try:
                async with database.write() as connection:
                    await connection.execute(insert(certificates), [certificate("03")])
                break
            except StorageError:
                continue
        async with database.read() as connection:
            found = (await connection.execute(select(certificates.c.serial))).scalars().all()
        assert found == ["01", "03"]


async def test_a_deadlock_and_a_serialization_failure_are_storage_errors(postgres: PostgresServer) -> None:
    place = await asyncio.to_thread(postgres.place)
    async with Database(place) as database:
        async with database.write() as connection:
            await connection.execute(insert(certificates), [certificate("01"), certificate("02")])
        both = asyncio.Barrier(2)

        async def cross(first: str, second: str) -> None:
            async with database.write() as connection:
                await connection.execute(
                    update(certificates).where(certificates.c.serial == first).values(subject="x")
                )
                await both.wait()
                await connection.execute(
                    update(certificates).where(certificates.c.serial == second).values(subject="y")
                )

        results = await asyncio.gather(cross("01", "02"), cross("02", "01"), return_exceptions=True)
        (failed,) = [result for result in results if result is not None]
        assert isinstance(failed, StorageError)
        assert "deadlock detected" in str(failed)

        async def serializable() -> None:
            async with database.write() as connection:
                await connection.execute(text("set transaction isolation level serializable"))
                await connection.execute(select(certificates.c.subject))
                async with database.write() as other:
                    await other.execute(update(certificates).values(subject="z"))
                await connection.execute(update(certificates).values(subject="w"))

        with pytest.raises(StorageError, match="could not serialize"):
            await serializable()


async def test_a_reader_cannot_write(postgres: PostgresServer) -> None:
    place = await asyncio.to_thread(postgres.place)

    async def write() -> None:
        async with Database(place) as database, database.read() as connection:
            await connection.execute(insert(certificates), [certificate("01")])

    with pytest.raises(StorageError, match="read-only"):
        await write()


async def test_a_server_that_does_not_wait_for_the_disk_is_refused(postgres: PostgresServer) -> None:
    name = await asyncio.to_thread(postgres.database)
    await asyncio.to_thread(postgres.sql, f"alter database {name} set synchronous_commit = off")
    with pytest.raises(NotDurable, match="synchronous_commit = off"):
        await Database(PostgresPlace(url=postgres.url(name))).__aenter__()
    await asyncio.to_thread(postgres.sql, f"alter database {name} set synchronous_commit = local")
    async with Database(PostgresPlace(url=postgres.url(name))) as database, database.read() as connection:
        assert (await connection.execute(text("select 1"))).scalar_one() == 1


def test_a_wrong_password_is_told_and_not_shown(postgres: PostgresServer, tmp_path: Path) -> None:
    name = postgres.database()
    escaped = PASSWORD.replace("'", "''")
    postgres.sql(
        f"create role keeper login password '{escaped}'; grant select on all tables in schema public to keeper",
        name,
    )
    file = tmp_path / "password"
    file.touch(mode=0o600)

    def place(password: str) -> PostgresPlace:
        file.write_text(password + "\n")
        settings = {
            "CERTMILL_STORAGE_DATABASE": postgres.tcp_url(name, user="keeper"),
            "CERTMILL_STORAGE_PASSWORD": f"file:{file}",
        }
        found = place_of(software_config(tmp_path, **settings))
        assert isinstance(found, PostgresPlace)
        assert password not in repr(found)
        return found

    assert revision(place(PASSWORD)) == head()
    with pytest.raises(StorageError, match="password authentication failed") as refused:
        revision(place("wrong-secret"))
    assert "wrong-secret" not in str(refused.value)


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="database postgresql://nobody@/none: "):
        revision(PostgresPlace(url=f"postgresql://nobody@/none?host={tmp_path}"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"database": "postgresql://u:secret@h/d"}, "write it into a file"),
        ({"database": "postgresql://h/d?password=secret"}, "write it into a file"),
        ({"database": "mysql://h/d"}, "must be empty"),
        ({"database": "postgresql://[h/secret"}, "not a URL"),
        ({"database": "postgresql://h"}, "names no database"),
        ({"password": "file:/secret"}, "SQLite has none"),
        ({"database": "postgresql://h/d", "password": "prompt"}, "nobody is asked"),
        ({"database": "postgresql://h/d", "password": "secret"}, "not the password itself"),
    ],
)
def test_a_wrong_setting_says_why_and_shows_no_secret(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as refused:
        StorageSection(**settings)  # type: ignore[arg-type]
    assert "secret" not in str(refused.value)


def test_those_that_start_at_once_upgrade_once(postgres: PostgresServer, tmp_path: Path) -> None:
    url = postgres.url(postgres.empty_database())
    upgrades = [
        subprocess.Popen(
            [sys.executable, "-m", "server", "db", "upgrade", "--json"],
            env={**os.environ, "CERTMILL_HOME": str(tmp_path / str(n)), "CERTMILL_STORAGE_DATABASE": url},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(3)
    ]  # fmt: skip
    for one in upgrades:
        out, err = one.communicate(timeout=60)
        assert (one.returncode, json.loads(out)["to"]) == (0, head()), err
    assert revision(PostgresPlace(url=url)) == head()


def me(store: str = "/store", name: str = "00000000-0000-0000-0000-000000000001", host: str = "here") -> Identity:
    return Identity(id=name, host=host, store=store)


async def test_authorities_see_each_other_and_one_leads(postgres: PostgresServer) -> None:
    place = await asyncio.to_thread(postgres.place)
    clock, second = MovableClock(), "00000000-0000-0000-0000-000000000002"

    def presence(database: Database, identity: Identity, clock: MovableClock = clock) -> Presence:
        return Presence(database, identity, clock=clock, logger=quiet_logger(), patience_s=0.2)

    async with Database(place) as database:
        async with presence(database, me()) as first:
            assert first.leads
            with pytest.raises(AlreadyRunning, match="is a copy of another one"):
                await presence(database, me()).__aenter__()
            with pytest.raises(ConfigError, match=r"ocsp.store: .* /store, .* /elsewhere"):
                await presence(database, me("/elsewhere", second)).__aenter__()
            with pytest.raises(ConfigError, match="on one host"):
                await presence(database, me("/store", second, host="there")).__aenter__()
            wrong = MovableClock()
            wrong.advance(hours=1)
            with pytest.raises(StorageError, match="differ by 36"):
                await presence(database, me("/store", second), wrong).__aenter__()
            async with presence(database, me("/store", second)) as other:
                assert not other.leads
        async with presence(database, me("/elsewhere", second)) as other:
            assert other.leads, "who is gone binds nobody"


async def test_leadership_ends_with_the_connection_and_comes_back(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.storage.presence.LOOK_S", 0.05)
    name = await asyncio.to_thread(postgres.database)
    kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid()"

    async def becomes(*, leader: bool) -> None:
        async with asyncio.timeout(10):
            while presence.leads is not leader:  # noqa: ASYNC110 - the connection breaks when it breaks
                await asyncio.sleep(0.002)

    async with (
        Database(PostgresPlace(url=postgres.url(name))) as database,
        Presence(database, me(), clock=MovableClock(), logger=quiet_logger()) as presence,
    ):
        loop = asyncio.create_task(presence.run())
        await becomes(leader=True)
        await asyncio.to_thread(postgres.sql, kill)
        await becomes(leader=False)
        await becomes(leader=True)
        loop.cancel()
        await asyncio.wait([loop])
    assert await asyncio.to_thread(postgres.sql, "select count(*) from authorities", name) == "0"


async def test_values_that_are_too_long_are_refused_not_cut(postgres: PostgresServer) -> None:
    place = await asyncio.to_thread(postgres.place)
    row = {"name": "x" * 65, "spki_sha256": b"", "profiles": [], "names": [], "disabled": False}

    async def write() -> None:
        async with Database(place) as database, database.write() as connection:
            await connection.execute(insert(clients), row)

    with pytest.raises(StorageError, match="too long"):
        await write()
