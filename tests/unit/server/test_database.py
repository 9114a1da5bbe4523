"""The embedded database: what is committed is on the disk."""

from pathlib import Path

from sqlalchemy import text

from server.storage.database import Database
from server.storage.disk import CHECKPOINT_ROWS

SYNCHRONOUS_FULL = 2


async def test_writer_waits_for_the_disk(tmp_path: Path) -> None:
    """With NORMAL a power cut loses transactions that were acknowledged, with OFF it can lose the database."""
    async with Database(tmp_path / "db.sqlite") as database, database.write() as connection:
        assert (await connection.execute(text("PRAGMA synchronous"))).scalar_one() == SYNCHRONOUS_FULL
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar_one() == 1


async def test_the_log_is_moved_into_the_file_now_and_then(tmp_path: Path) -> None:
    """SQLite's own checkpoints are off, for they hide an fsync that failed."""
    path = tmp_path / "db.sqlite"
    async with Database(path) as database:
        async with database.write() as connection:
            assert (await connection.execute(text("PRAGMA wal_autocheckpoint"))).scalar_one() == 0
            await connection.execute(text("create table t (x blob)"))
        for _ in range(3 * CHECKPOINT_ROWS // 100):
            async with database.write() as connection:
                await connection.execute(text("insert into t values (zeroblob(4000))"), [{}] * 100)
        sizes = [file.stat().st_size for file in (path, tmp_path / "db.sqlite-wal")]
        assert sizes[0] > 2 * CHECKPOINT_ROWS * 4000
        assert sizes[1] < 2 * CHECKPOINT_ROWS * 4000
