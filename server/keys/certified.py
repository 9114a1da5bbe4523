"""Which keys the certificates in the database were made for. All of it is known before any token is opened.

`place`: where the database is, None for SQLite in the home. Blocking. Only `replace_responder` and
`responder_certified` write, and only a file of the home.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import Connection, Select, inspect, select
from sqlalchemy.dialects import sqlite

from server.auth.clients import CERTMILL
from server.errors import StorageError
from server.home import Home, write_file
from server.issuance.profile_files import OCSP_RESPONDER
from server.storage.blocking import blocking
from server.storage.place import Place, PostgresPlace, SqlitePlace
from server.storage.schema import State, certificates, issuers


def certified_keys(home: Home, place: Place | None = None) -> dict[str, bytes]:
    """Return the SubjectPublicKeyInfo (DER) in each CA certificate of the database, by the key's name.

    Empty before `certmill init`. Raises `StorageError`.
    """
    try:
        rows = rows_of(home, place, select(issuers.c.key_label, issuers.c.certificate_der))
        return {name: _spki_der(der) for name, der in rows}
    except ValueError as error:
        raise StorageError(f"{place or SqlitePlace(home.database)}: {error}") from None


def expected_keys(home: Home, place: Place | None = None, *, issuer: str, responder: str) -> dict[str, bytes]:
    """Return the SHA-256 of the SubjectPublicKeyInfo that must stand behind each key's name.

    Besides the CAs' keys that of the OCSP responder under the CA `issuer`, by the name `responder`, unless it is
    being replaced. Raises `StorageError`.
    """
    expected = {name: hashlib.sha256(spki_der).digest() for name, spki_der in certified_keys(home, place).items()}
    sha256 = _responder_sha256(home, place, issuer)
    if sha256 is not None and sha256 != _replaced(home):
        expected[responder] = sha256
    return expected


def replace_responder(home: Home, place: Place | None = None, *, issuer: str) -> None:
    """Note, durably, that the responder's present key is lost: until another has a certificate, none is expected.

    A crash in between leaves a key without certificate, which must not be taken for a wrong one.
    Raises `StorageError`.
    """
    sha256 = _responder_sha256(home, place, issuer)
    if sha256 is None:
        return
    try:
        write_file(home.replaced_responder, sha256, mode=0o600)
    except OSError as error:
        raise StorageError(f"{home.replaced_responder} cannot be written: {error.strerror}") from None


def responder_certified(home: Home) -> None:
    """Take note that the responder's key has a certificate: from now on no other is accepted."""
    home.replaced_responder.unlink(missing_ok=True)


def _replaced(home: Home) -> bytes | None:
    try:
        return home.replaced_responder.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{home.replaced_responder} cannot be read: {error.strerror}") from None


def _responder_sha256(home: Home, place: Place | None, issuer: str) -> bytes | None:
    c = certificates.c
    query = (
        select(c.spki_sha256)
        .where(
            c.client == CERTMILL.name,  # there is an index for it, and a million certificates of others
            c.issuer == issuer,
            c.profile.like(f"{OCSP_RESPONDER}@%"),
            c.state == State.ISSUED.value,
            c.revoked_at.is_(None),
        )
        .order_by(c.id.desc())
        .limit(1)
    )
    return next((sha256 for (sha256,) in rows_of(home, place, query)), None)


def rows_of(home: Home, place: Place | None, query: Select[Any]) -> Sequence[tuple[Any, ...]]:
    """Return what the query finds; nothing if database or tables are not there yet. Raises `StorageError`.

    Makes nothing, and needs no lock on the home.
    """
    if isinstance(place, PostgresPlace):
        return blocking(place, lambda connection: _found(connection, query))
    if not home.database.exists():
        return []
    # A WAL database cannot be read without its -shm, which a reader would make. Without a -wal nobody has it open,
    # and the file alone is all of it.
    beside = home.database.with_name(home.database.name + "-wal")
    how = "mode=ro" if beside.exists() else "immutable=1"
    text = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    try:
        with closing(sqlite3.connect(f"{home.database.absolute().as_uri()}?{how}", uri=True)) as connection:
            has_table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
            if connection.execute(has_table, (issuers.name,)).fetchone() is None:
                return []
            return connection.execute(str(text)).fetchall()
    except sqlite3.Error as error:
        raise StorageError(f"database {home.database}: {error}") from None


def _found(connection: Connection, query: Select[Any]) -> Sequence[tuple[Any, ...]]:
    if not inspect(connection).has_table(issuers.name):
        return []
    return [tuple(row) for row in connection.execute(query)]


def _spki_der(certificate_der: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate_der).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
