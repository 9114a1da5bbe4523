"""Which errors of SQLite mean that the disk cannot be believed any more.

After a failed fsync the kernel may forget what it could not write, and the next fsync succeeds without it (what
PostgreSQL panics for). So after such an error nothing more is committed by this process: it ends, and the next one
writes every page that is still in the log anew, with an fsync that counts, before it serves (`settle`).
A full disk is no such error: SQLite rolls back what did not fit, and nothing that was durable is touched.
"""

import sqlite3

from sqlalchemy import Connection

# Full tables of pages, locks and memory are reported as I/O errors too; they heal.
_HARMLESS = {
    sqlite3.SQLITE_IOERR_NOMEM,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_LOCK,
    sqlite3.SQLITE_IOERR_BLOCKED,
}
_FATAL = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PRIMARY = 0xFF
CHECKPOINT_COMMITS = 50
"""So many commits lie between two checkpoints: a few hundred to a few thousand pages of the log."""


def is_disk_failure(error: BaseException | None) -> bool:
    """Say whether an error, or what it was raised for (`orig`), means that the disk failed."""
    error = getattr(error, "orig", None) or error
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(code, int) and code & _PRIMARY in _FATAL and code not in _HARMLESS


def settle(connection: Connection) -> None:
    """Bring what SQLite's log holds into the file, durably, and empty the log; raises the driver's errors.

    While another process reads (`certmill client …`), what it still needs stays in the log, for the next time.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
