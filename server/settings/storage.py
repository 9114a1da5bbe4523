"""`[storage]`: where the database is, and where the password for it is. Never the password itself."""

from typing import Annotated
from urllib.parse import parse_qs, urlsplit

from msgspec import Meta

from server.keys.pin import PROMPT, PinError, check_pin_source
from server.settings.section import Section

SCHEMES = ("postgresql", "postgres")
_SECRETS = {"password", "passfile", "sslpassword"}


class StorageSection(Section, frozen=True, kw_only=True):
    """The database: SQLite in the home (empty), or a PostgreSQL by a libpq URL without a password."""

    database: str = ""
    password: str = ""
    connections: Annotated[int, Meta(ge=2, le=200)] = 8

    def __post_init__(self) -> None:
        if self.database:
            _check_url(self.database)
        if not self.password:
            return
        if not self.database:
            raise ValueError("password: SQLite has none; remove it, or name a PostgreSQL by storage.database")
        if self.password == PROMPT:
            raise ValueError("password: nobody is asked for it; write file:/path or credential:NAME")
        try:
            check_pin_source(self.password)
        except PinError:  # not quoted: somebody may have written the password itself
            raise ValueError(
                "password: write file:/path of the password or credential:NAME, not the password itself"
            ) from None


def _check_url(url: str) -> None:
    """Raise ValueError unless it is the URL of a PostgreSQL that holds no password. Never quotes it."""
    example = "postgresql://certmill@db.example.gov/certmill?sslmode=verify-full"
    try:
        parts = urlsplit(url)
        secret = parts.password is not None or not _SECRETS.isdisjoint(parse_qs(parts.query))
    except ValueError:
        raise ValueError(f"database: not a URL; write one such as {example}") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"database: must be empty (SQLite in the home) or a PostgreSQL URL such as {example}")
    if secret:
        raise ValueError(
            "database: a password in it would be shown to others; write it into a file and name that: "
            'storage.password = "file:/etc/certmill/database-password"'
        )
    if not parts.path.strip("/"):
        raise ValueError(f"database: the URL names no database; write one such as {example}")
