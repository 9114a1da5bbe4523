"""`certmill db backup`: one consistent moment of the database in one file, made while certmill serves. Blocking.

The file appears under its name only when it is whole, verified and on the disk.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from server.errors import Conflict, InvalidRequest, StorageError
from server.storage.blocking import blocking
from server.storage.pg_tools import run_tool
from server.storage.place import Place, PostgresPlace, SqlitePlace, is_initialised
from server.storage.schema import State, certificates

OnProgress = Callable[[int, int], None]
SQLITE_MAGIC, POSTGRES_MAGIC = b"SQLite format 3\0", b"PGDMP"
_PAGES = 2048
_BLOCK = 1 << 20


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished backup. `certificates`: issued when it began, all of which it holds."""

    file: str
    database: str
    size: int
    sha256: str
    certificates: int


def back_up(place: Place, target: Path, on_progress: OnProgress) -> Backup:
    """Write a backup; raises `Conflict` if the file is there, `InvalidRequest` or `StorageError`."""
    if not is_initialised(place):
        raise InvalidRequest(f"there is no {place}", remedy="certmill init makes one")
    if target.exists():
        raise Conflict(
            f"{target} is there already",
            field="FILE",
            remedy="give each backup a name of its own, such as its time",
        )
    issued = select(func.count()).select_from(certificates).where(certificates.c.state == State.ISSUED.value)
    count = blocking(place, lambda connection: connection.scalar(issued)) or 0
    with whole_file(target) as partial:
        if isinstance(place, SqlitePlace):
            copy_sqlite(place.path, partial, on_progress)
            require_sound(partial)
        else:
            _dump(place, partial)
    return Backup(
        file=str(target),
        database=str(place),
        size=target.stat().st_size,
        sha256=_sha256(target),
        certificates=count,
    )


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a private file to write; at the end it takes the name `target`, durably, or is gone again."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield partial
        sync(partial)
        partial.replace(target)
        sync(target.parent)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        for path in (partial, *beside(partial)):
            path.unlink(missing_ok=True)


def copy_sqlite(source: Path, target: Path, on_progress: OnProgress) -> None:
    """Copy a database as it is at one moment, whoever writes to it meanwhile; raises `StorageError`."""
    try:
        with closing(sqlite3.connect(source.absolute().as_uri() + "?mode=rw", uri=True, timeout=30)) as from_:
            from_.isolation_level = None
            from_.execute("BEGIN")  # its snapshot stays, so that writers do not make the copy begin again
            from_.execute("SELECT count(*) FROM sqlite_master").fetchone()
            with closing(sqlite3.connect(target)) as to:
                from_.backup(to, pages=_PAGES, progress=lambda _, left, all_: on_progress(all_ - left, all_))
                to.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
    except sqlite3.Error as error:
        raise StorageError(f"database {source} cannot be copied: {error}") from None


def require_sound(path: Path) -> None:
    """Raise `StorageError` unless the SQLite file is whole."""
    try:
        with closing(sqlite3.connect(path.absolute().as_uri() + "?mode=ro", uri=True)) as connection:
            words = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        words = [str(error)]
    if words != ["ok"]:
        raise StorageError(f"{path.name} is damaged: {words[0]}")


def require_readable(dump: Path) -> None:
    """Raise `StorageError` unless pg_restore can read all of the dump."""
    run_tool("pg_restore", ["--file=/dev/null", str(dump)])


def beside(path: Path) -> list[Path]:
    """Return the names of what SQLite keeps beside a database file."""
    return [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dump(place: PostgresPlace, partial: Path) -> None:
    run_tool("pg_dump", ["--format=custom", f"--file={partial}"], place)
    require_readable(partial)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
