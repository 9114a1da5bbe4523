"""`certmill db …`: what check finds, what a backup under load holds, and that a restore takes nothing back."""

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import delete, insert, text, update

from ocsp.store import Status
from pkix.crl import RevocationReason
from pkix.names import SerialNumber, serial_hex
from server.config import Config
from server.errors import ConfigError, Conflict, InvalidRequest, StorageError
from server.revocation.crl_file import publish_file, published_number
from server.storage.backup import back_up
from server.storage.check import check_database
from server.storage.pg_tools import run_tool
from server.storage.place import Place, PostgresPlace, place_of
from server.storage.restore import restore
from server.storage.schema import audit_log, certificates, crls, ocsp_responses
from tests.contract.test_database_contract import certificate
from tests.support.authority import MovableClock, authority, order, prepare, software_config, stored_status
from tests.support.postgres import PostgresServer

Kind = str


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return str(request.param)


def make_config(home: Path, kind: Kind, request: pytest.FixtureRequest) -> Config:
    """Name a new and empty database."""
    if kind == "sqlite":
        return software_config(home)
    server: PostgresServer = request.getfixturevalue("postgres")
    return software_config(home, CERTMILL_STORAGE_DATABASE=server.url(server.empty_database()))


def db(config: Config, *arguments: str, expect: int = 0) -> Any:
    """Run `certmill db … --json` and return what it says; what goes wrong is text."""
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CERTMILL_")},
        "CERTMILL_HOME": str(config.home),
        "CERTMILL_SIGNER_KIND": "software",
        "CERTMILL_STORAGE_DATABASE": config.storage.database,
    }
    done = subprocess.run(
        [sys.executable, "-m", "server", "db", *arguments, "--json"],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def with_the_same_keys(config: Config, home: Path) -> None:
    """Give a new home what a backup does not hold: the CA's keys."""
    for part in ("software-keys", "secrets"):
        shutil.copytree(config.home / part, home / part)


async def test_a_backup_under_load_comes_back_and_nothing_goes_backwards(
    kind: Kind, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    old, new = [await asyncio.to_thread(make_config, tmp_path / n, kind, request) for n in ("old", "new")]
    prepared = await asyncio.to_thread(prepare, old)
    file = tmp_path / "backup"
    acknowledged: list[SerialNumber] = []

    async with authority(prepared, MovableClock()) as parts:
        enough = asyncio.Event()

        async def load() -> None:
            while not enough.is_set():
                acknowledged.append((await parts.issuance.issue(order())).serial)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(load())
            while len(acknowledged) < 30:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            before = list(acknowledged)
            backup = await asyncio.to_thread(db, old, "backup", str(file))
            after = len(acknowledged)
            while len(acknowledged) <= after:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            enough.set()
        assert backup["certificates"] >= len(before)
        assert backup["size"] == file.stat().st_size
        assert file.stat().st_mode & 0o777 == 0o600
        lost = acknowledged[-1]
        for serial in (before[0], lost):
            await parts.revocation.revoke(
                serial, RevocationReason.KEY_COMPROMISE, client="ministry", request_id="r"
            )
        published = await parts.crl_publishers[1].publish()
        refused = await asyncio.to_thread(db, old, "restore", str(file), "--overwrite", expect=78)
        assert "another certmill uses" in refused
    with_the_same_keys(old, new.home)
    restored = await asyncio.to_thread(
        db, new, "restore", str(file), "--crl", str(old.home / "public/crl/issuing.crl")
    )
    assert restored["certificates"] >= len(before)
    assert (restored["revoked_again"], restored["lost"]) == (2, 1)
    again = await asyncio.to_thread(prepare, new)
    async with authority(again, MovableClock()) as parts:
        for serial in before:
            assert await parts.publisher.status_of(serial) is not None
            wanted = Status.REVOKED if serial == before[0] else Status.GOOD
            assert await stored_status(parts, serial) is wanted
        assert await stored_status(parts, lost) is Status.REVOKED, "of which only the CRL told"
        crl = x509.load_der_x509_crl(await asyncio.to_thread((new.home / "public/crl/issuing.crl").read_bytes))
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert number > restored["crl_numbers"]["issuing"] >= published
        assert {entry.serial_number for entry in crl} == {before[0], lost}
        assert (await parts.issuance.issue(order())).serial not in acknowledged
    assert (await asyncio.to_thread(db, new, "check"))["ok"]


async def test_an_overwritten_database_is_kept_and_its_own_crls_are_heeded(tmp_path: Path) -> None:
    config = await asyncio.to_thread(software_config, tmp_path / "home")
    prepared = await asyncio.to_thread(prepare, config)
    async with authority(prepared, MovableClock()) as parts:
        known = (await parts.issuance.issue(order())).serial
        await asyncio.to_thread(db, config, "backup", str(tmp_path / "backup"))
        ghost = (await parts.issuance.issue(order())).serial
        await parts.revocation.revoke(known, RevocationReason.SUPERSEDED, client="ministry", request_id="r")
        await parts.crl_publishers[1].publish()
    restored = await asyncio.to_thread(db, config, "restore", str(tmp_path / "backup"), "--overwrite")
    assert restored["revoked_again"] == 1
    with sqlite3.connect(restored["kept"]) as kept:
        rows = kept.execute("select count(*) from certificates where serial = ?", (serial_hex(ghost),))
        assert rows.fetchone() == (1,)
    kept.close()
    report = await asyncio.to_thread(db, config, "check", expect=1)
    found = {one["check"]: one for one in report["checks"] if not one["ok"]}
    assert found.keys() == {"response-store"}
    assert found["response-store"]["examples"] == [serial_hex(ghost)], "answered for, and unknown"


def put_back_by_hand(place: Place, backup: Path) -> None:
    if isinstance(place, PostgresPlace):
        run_tool("pg_restore", ["--clean", "--if-exists", str(backup)], place)
        return
    for file in place.path.parent.glob(f"{place.path.name}*"):
        file.unlink()
    shutil.copy(backup, place.path)


async def test_a_database_that_was_put_back_by_hand_takes_no_revocation_back(
    kind: Kind, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A copied file, a snapshot, a standby without the last transactions: the next CRL would forget."""
    config = await asyncio.to_thread(make_config, tmp_path / "home", kind, request)
    prepared = await asyncio.to_thread(prepare, config)
    place = await asyncio.to_thread(place_of, config)
    path = config.home / "public/crl/issuing.crl"
    async with authority(prepared, MovableClock()) as parts:
        revoked = (await parts.issuance.issue(order())).serial
        await asyncio.to_thread(back_up, place, tmp_path / "backup", nobody_looks)
        await parts.revocation.revoke(revoked, RevocationReason.SUPERSEDED, client="ministry", request_id="r")
        await parts.crl_publishers[1].publish()
    published = path.read_bytes()
    await asyncio.to_thread(put_back_by_hand, place, tmp_path / "backup")
    with pytest.raises(ConfigError, match="older than what was published") as refused:
        await asyncio.to_thread(prepare, config)
    assert "certmill db restore FILE --overwrite" in str(refused.value)
    async with authority(prepared, MovableClock()) as parts:  # it happened while one runs
        with pytest.raises(StorageError, match="older than what was published"):
            await parts.crl_publishers[1].publish()
    assert path.read_bytes() == published
    restored = await asyncio.to_thread(db, config, "restore", str(tmp_path / "backup"), "--overwrite")
    assert restored["revoked_again"] == 1
    again = await asyncio.to_thread(prepare, config)
    async with authority(again, MovableClock()) as parts:
        assert await stored_status(parts, revoked) is Status.REVOKED
        assert [one.serial_number for one in x509.load_der_x509_crl(path.read_bytes())] == [revoked]


async def test_check_finds_each_thing_that_is_wrong(
    kind: Kind, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    config = await asyncio.to_thread(make_config, tmp_path / "home", kind, request)
    prepared = await asyncio.to_thread(prepare, config)
    place = await asyncio.to_thread(place_of, config)

    def wrong() -> dict[str, Sequence[str]]:
        findings = check_database(place, config.response_store, lambda _done, _total: None)
        return {one.check: one.examples for one in findings if not one.ok}

    c = certificates.c
    async with authority(prepared, MovableClock()) as parts:
        serials = [serial_hex((await parts.issuance.issue(order())).serial) for _ in range(6)]
        await parts.crl_publishers[1].publish()
        assert await asyncio.to_thread(wrong) == {}
        async with parts.database.write() as connection:
            await connection.execute(delete(audit_log).where(audit_log.c.object == serials[0]))
            await connection.execute(delete(ocsp_responses).where(ocsp_responses.c.serial == serials[1]))
            for serial, change in (
                (serials[2], {"der": b"no certificate"}),
                (serials[3], {"der": None}),
                (serials[4], {"tbs_sha256": b"another"}),
            ):
                await connection.execute(update(certificates).where(c.serial == serial).values(**change))
            other = (
                await connection.execute(text(f"select der from certificates where serial = '{serials[0]}'"))
            ).scalar_one()
            await connection.execute(update(certificates).where(c.serial == serials[5]).values(der=other))
            await connection.execute(insert(certificates), [certificate("0f", state="intent", created_at=5)])
            await connection.execute(update(crls).where(crls.c.issuer == "issuing").values(der=b"no CRL"))
    found = await asyncio.to_thread(wrong)
    assert found.pop("intents") == ["0f"]
    assert found.pop("audit") == [serials[0]]
    assert found.pop("schedule") == [serials[1]]
    assert [line.split(": the certificate ")[1] for line in found.pop("certificates")] == [
        "cannot be parsed", "is missing", "is not the one of its intent", "has another serial number",
    ]  # fmt: skip
    assert {line.split("/")[0] for line in found.pop("crls")} == {"issuing"}
    assert found == {}


def nobody_looks(_done: int, _total: int) -> None:
    pass


def test_what_is_no_backup_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    config = software_config(tmp_path / "home")
    place = place_of(config)
    assert "was never initialised" in db(config, "check", expect=78)
    with pytest.raises(InvalidRequest, match=r"there is no database .*certmill\.sqlite"):
        back_up(place, tmp_path / "backup", nobody_looks)

    def put_back(name: str) -> None:
        restore(config, place, tmp_path / name, [], nobody_looks, overwrite=False)

    with pytest.raises(InvalidRequest, match="cannot be read"):
        put_back("none")
    (tmp_path / "dump").write_bytes(b"PGDMP" + bytes(100))
    with pytest.raises(InvalidRequest, match="no backup of a SQLite database"):
        put_back("dump")
    (tmp_path / "damaged").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    with pytest.raises(StorageError, match=r"cannot be copied|damaged"):
        put_back("damaged")
    assert list(config.home.glob(".certmill.sqlite*")) == []
    assert not place.path.exists()  # type: ignore[union-attr]


def test_a_dump_goes_only_into_an_empty_database_where_nobody_works(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    config = software_config(tmp_path / "home", CERTMILL_STORAGE_DATABASE=postgres.url(postgres.database()))
    place = place_of(config)
    backup = back_up(place, tmp_path / "backup", nobody_looks)
    assert backup.certificates == 0
    with pytest.raises(Conflict, match="is there already"):
        back_up(place, tmp_path / "backup", nobody_looks)
    with pytest.raises(Conflict, match="is not empty"):
        restore(config, place, tmp_path / "backup", [], nobody_looks, overwrite=False)
    restored = restore(config, place, tmp_path / "backup", [], nobody_looks, overwrite=True)
    assert restored.certificates == 0
    (tmp_path / "cut").write_bytes((tmp_path / "backup").read_bytes()[:-200])
    with pytest.raises(StorageError, match="pg_restore: "):
        restore(config, place, tmp_path / "cut", [], nobody_looks, overwrite=True)
    with pytest.raises(StorageError, match="pg_dump: "):
        run_tool("pg_dump", ["--no-such-option"], place)  # type: ignore[arg-type]


def test_a_crl_file_never_gets_a_lower_number(tmp_path: Path) -> None:
    path = tmp_path / "issuing.crl"
    assert published_number(path) == 0
    path.write_bytes(b"no CRL")
    assert published_number(path) == 0
    publish_file(path, 1, b"better than none")
    assert path.read_bytes() == b"better than none"
