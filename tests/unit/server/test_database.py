"""The embedded database: what is committed is on the disk."""

from pathlib import Path

from sqlalchemy import text

from server.storage.database import Database

SYNCHRONOUS_FULL = 2


async def test_writer_waits_for_the_disk(tmp_path: Path) -> None:
    """With NORMAL a power cut loses transactions that were acknowledged, with OFF it can lose the database."""
    async with Database(tmp_path / "db.sqlite") as database, database.write() as connection:
        assert (await connection.execute(text("PRAGMA synchronous"))).scalar_one() == SYNCHRONOUS_FULL
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar_one() == 1
