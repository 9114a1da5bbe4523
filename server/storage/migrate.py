"""Bring a database to the schema of this version (Alembic)."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from server.errors import ConfigError
from server.storage.blocking import blocking
from server.storage.disk import settle
from server.storage.place import Place, SqlitePlace


def upgrade(place: Place | Path, *, to: str = "head") -> None:
    """Create the database's tables or upgrade them; raises `StorageError`, and `ConfigError` if it is newer.

    Blocking. Of several authorities that start at once, one upgrades and the others wait for it.
    """
    config = _config()

    def work(connection: Connection) -> None:
        settle(connection)
        _require_known(place, revision_of(connection))
        connection.rollback()  # else Alembic takes our transaction for the caller's, and does not commit it
        config.attributes["connection"] = connection
        command.upgrade(config, to)

    _run(place, work)


def head() -> str:
    """Return the revision of this version."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def revision(place: Place) -> str | None:
    """Return the database's revision, None if it has no tables; raises `StorageError`. Blocking."""
    found: list[str | None] = []
    _run(place, lambda connection: found.append(revision_of(connection)))
    return found[0]


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the database behind a connection."""
    return MigrationContext.configure(connection).get_current_revision()


def _run(place: Place | Path, work: Callable[[Connection], None]) -> None:
    blocking(SqlitePlace(place) if isinstance(place, Path) else place, work)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    return config


def _require_known(place: Place | Path, found: str | None) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is not None and found not in known:
        raise ConfigError(
            f"{place}: it has schema {found}, of a newer certmill; this one knows schemas up to {head()}. "
            "Start the newer certmill, or restore a backup of before"
        )
