"""Which keys the database expects in the tokens."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import create_engine, insert

from server.errors import StorageError
from server.home import Home
from server.keys.certified import certified_keys, expected_keys, replace_responder, responder_certified
from server.storage.schema import certificates, issuers, metadata
from tests.support.ca import make_ca

CAS = {name: make_ca().issuer for name in ("root", "issuing")}
OLD, NEW = b"o" * 32, b"n" * 32


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


@pytest.fixture
def database(home: Home) -> Iterator[sqlite3.Connection]:
    """The database of a home with two CAs, in the mode that the authority uses; still open."""
    engine = create_engine(f"sqlite:///{home.database}")
    with engine.begin() as connection:
        metadata.create_all(connection)
        rows = [{"label": n, "key_label": n, "certificate_der": ca.certificate_der} for n, ca in CAS.items()]
        connection.execute(insert(issuers), rows)
    engine.dispose()
    with closing(sqlite3.connect(home.database, isolation_level=None)) as connection:
        connection.execute("pragma journal_mode=wal")
        yield connection


def certify(database: sqlite3.Connection, spki_sha256: bytes, **changes: object) -> None:
    """Add a certificate of the responder, or another one."""
    row = {
        "issuer": "issuing", "state": "issued", "profile": "ocsp-responder@1", "client": "certmill",
        "serial": str(database.execute("select count(*) from certificates").fetchone()[0]),
        "request_id": "-", "subject": "-", "dns_names": "[]", "tbs_sha256": b"", "spki_sha256": spki_sha256,
        "not_before": 0, "not_after": 1, "created_at": 0,
    } | changes  # fmt: skip
    assert set(row) <= set(certificates.c.keys())
    places = ", ".join("?" * len(row))
    database.execute(f"insert into certificates ({', '.join(row)}) values ({places})", list(row.values()))


def expected(home: Home) -> dict[str, bytes]:
    return expected_keys(home, issuer="issuing", responder="ocsp")


def spki_der(name: str) -> bytes:
    return CAS[name].public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


AUTHORITIES = {name: hashlib.sha256(spki_der(name)).digest() for name in CAS}


def test_a_fresh_home_expects_nothing(home: Home) -> None:
    assert expected(home) == {}
    home.database.touch()
    assert expected(home) == {}
    replace_responder(home, issuer="issuing")
    assert list(home.run.iterdir()) == []


def test_the_keys_of_the_cas_are_known(home: Home, database: sqlite3.Connection) -> None:
    assert certified_keys(home) == {name: spki_der(name) for name in CAS}
    assert expected(home) == AUTHORITIES


def test_the_newest_certificate_of_the_responder_says_its_key(home: Home, database: sqlite3.Connection) -> None:
    certify(database, OLD)
    assert expected(home) == AUTHORITIES | {"ocsp": OLD}
    certify(database, NEW, profile="ocsp-responder@2")
    assert expected(home) == AUTHORITIES | {"ocsp": NEW}
    database.close()
    assert expected(home) == AUTHORITIES | {"ocsp": NEW}
    assert [path.name for path in home.root.glob("certmill.sqlite*")] == ["certmill.sqlite"]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "intent"},
        {"state": "abandoned"},
        {"revoked_at": 1},
        {"issuer": "root"},
        {"client": "ministry"},
        {"profile": "tls-server@1"},
        {"profile": "ocsp-responders@1"},
    ],
)
def test_no_other_certificate_says_the_responders_key(
    home: Home, database: sqlite3.Connection, changes: dict[str, object]
) -> None:
    certify(database, OLD)
    certify(database, NEW, **changes)
    assert expected(home)["ocsp"] == OLD


def test_a_lost_key_is_not_expected_until_another_has_a_certificate(
    home: Home, database: sqlite3.Connection
) -> None:
    certify(database, OLD)
    replace_responder(home, issuer="issuing")
    for _ in range(2):
        assert expected(home) == AUTHORITIES
    certify(database, NEW)
    assert expected(home)["ocsp"] == NEW, "though nobody has said yet that there is one"
    for _ in range(2):
        responder_certified(home)
    assert expected(home)["ocsp"] == NEW
    assert list(home.run.iterdir()) == []


def test_what_cannot_be_read_or_written_is_told(home: Home, database: sqlite3.Connection) -> None:
    certify(database, OLD)
    home.replaced_responder.mkdir()
    with pytest.raises(StorageError, match=r"replaced-responder cannot be read: Is a directory"):
        expected(home)
    with pytest.raises(StorageError, match=r"replaced-responder cannot be written: Is a directory"):
        replace_responder(home, issuer="issuing")
    database.execute("update issuers set certificate_der = x'00'")
    with pytest.raises(StorageError, match=r"certmill\.sqlite: "):
        certified_keys(home)
    database.close()
    home.database.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        certified_keys(home)
