"""Where the database is: a file of the home, or a PostgreSQL that several authorities may share."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from server.config import Config, environment
from server.home import Home
from server.keys.pin import read_pin


@dataclass(frozen=True, slots=True)
class SqlitePlace:
    """A database file."""

    path: Path

    def __str__(self) -> str:
        return f"database {self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresPlace:
    """A PostgreSQL by its libpq URL without password; `connections` for reading, as many for writing."""

    url: str
    password: str | None = field(default=None, repr=False)
    connections: int = 8

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"database {urlunsplit((parts.scheme, parts.netloc, parts.path, '', ''))}"


Place = SqlitePlace | PostgresPlace


def place_of(config: Config) -> Place:
    """Return where the settings say that the database is; reads the password. Blocking; raises `ConfigError`."""
    storage = config.storage
    if not storage.database:
        return SqlitePlace(Home(config.home).database)
    password = None
    if storage.password:
        password = read_pin(storage.password, environment(), _nobody, setting="storage.password")
    return PostgresPlace(url=storage.database, password=password, connections=storage.connections)


def is_initialised(place: Place) -> bool:
    """Say whether there may be a database: a file that is not there was never made."""
    return not isinstance(place, SqlitePlace) or place.path.exists()


def no_database(home: Home, place: Place) -> str:
    """Say what to do about a database that is not there, or has no CA: it was never made, or it is lost."""
    trace = next((path for path in home.traces_of_a_ca if path.exists()), None)
    if trace is None:
        return f"{home.root} was never initialised: run `certmill init` first"
    return (
        f"{place} is lost, or it is another one: it does not know the CA of this home ({trace}). Nothing is made "
        "in its place. Put the last backup back: `certmill db restore FILE` (with --overwrite where it asks for "
        "that; docs/operating.md, Restore); a new CA needs an empty CERTMILL_HOME"
    )


def _nobody() -> str:
    raise AssertionError("`prompt` is refused by the settings")
