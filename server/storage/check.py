"""`certmill db check`: is everything there that must be, and is it what it says? Looks, and changes nothing."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from sqlalchemy import Connection, Select, exists, func, select, text

from ocsp.errors import StoreError
from ocsp.lmdb_store import LmdbReader
from ocsp.store import issuer_tag, key_prefix
from pkix.names import serial_hex
from server.issuance.records import LONGEST_BATCH_S
from server.storage.blocking import blocking
from server.storage.migrate import head, revision_of
from server.storage.place import Place
from server.storage.schema import State, audit_log, certificates, crls, issuers, ocsp_responses

LOST = "lost@0"
"""Profile of a row that stands for a revoked certificate which a restored database no longer knew."""
_CHUNK = 500
_EXAMPLES = 10
OnProgress = Callable[[int, int], None]
_ISSUED = certificates.c.state == State.ISSUED.value


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found: `count` things that are wrong, the first of them by name; `detail` for people."""

    check: str
    ok: bool
    count: int
    detail: str
    examples: list[str]


def check_database(place: Place, store: Path, on_progress: OnProgress, *, now: int | None = None) -> list[Finding]:
    """Run every check; `store`: the response store's directory. Raises `StorageError`. Blocking."""
    moment = int(time.time()) if now is None else now
    return blocking(place, lambda connection: list(_checks(connection, store, on_progress, moment)))


def _checks(connection: Connection, store: Path, on_progress: OnProgress, now: int) -> Iterator[Finding]:
    yield _found("integrity", _damage(connection), "what the database says of its own files and constraints")
    found = revision_of(connection)
    wrong = [] if found == head() else [str(found)]
    yield _found(
        "schema", wrong, f"schema {found}, this certmill has {head()}; certmill db upgrade brings it there"
    )
    if found != head():
        return  # the other checks ask for columns that may not be there
    c = certificates.c
    old = select(c.serial).where(c.state == State.INTENT.value, c.created_at < now - LONGEST_BATCH_S)
    yield _found("intents", _names(connection, old), "intents that nobody can be at work on; a start closes them")
    yield _found("audit", _names(connection, _without_audit_entry()), "issued certificates without audit entry")
    yield _found(
        "schedule", _names(connection, _without_schedule(now)), "live certificates whose OCSP answer is due never"
    )
    yield _found("certificates", list(_not_as_recorded(connection, on_progress)), "not what was recorded of them")
    yield _found("crls", list(_wrong_crls(connection)), "CRLs that are not what their rows say")
    yield _found(
        "response-store",
        list(_unknown_answers(connection, store)),
        "answers for certificates unknown to the database: it was restored, and they were issued after the backup",
    )


def _damage(connection: Connection) -> list[str]:
    if connection.dialect.name == "sqlite":
        lines = [
            *connection.scalars(text("PRAGMA integrity_check")),
            *connection.execute(text("PRAGMA foreign_key_check")),
        ]
        return [str(line) for line in lines if line != "ok"]
    query = text(
        "select conname::text from pg_constraint where not convalidated "
        "union all select indexrelid::regclass::text from pg_index where not indisvalid"
    )
    return [str(name) for name in connection.scalars(query)]


def _without_audit_entry() -> Select[Any]:
    c, a = certificates.c, audit_log.c
    # An index over the log would cost every issue something; so the entries are gathered once, here.
    issued = select(a.object).where(a.action == "certificate.issued").distinct().subquery()
    return (
        select(c.serial)
        .outerjoin(issued, issued.c.object == c.serial)
        .where(_ISSUED, c.profile != LOST, issued.c.object.is_(None))
    )


def _without_schedule(now: int) -> Select[Any]:
    c, o = certificates.c, ocsp_responses.c
    row = exists().where(o.issuer == c.issuer, o.serial == c.serial, o.hash_name == "sha1")
    answered = exists().where(o.issuer == c.issuer)  # an issuer without OCSP (the root) has no row at all
    return select(c.serial).where(_ISSUED, c.not_after >= now, c.profile != LOST, answered, ~row)


def _names(connection: Connection, query: Select[Any]) -> list[str]:
    return list(connection.scalars(query))


def _not_as_recorded(connection: Connection, on_progress: OnProgress) -> Iterator[str]:
    c = certificates.c
    total = connection.scalar(select(func.count()).select_from(certificates).where(_ISSUED)) or 0
    done, last = 0, 0
    query = (
        select(c.id, c.serial, c.der, c.tbs_sha256).where(_ISSUED, c.profile != LOST).order_by(c.id).limit(_CHUNK)
    )
    while rows := connection.execute(query.where(c.id > last)).all():
        for row in rows:
            if fault := _fault(row.serial, row.der, row.tbs_sha256):
                yield f"{row.serial}: {fault}"
        last, done = rows[-1].id, done + len(rows)
        on_progress(done, max(total, done))


def _fault(serial: str, der: bytes | None, tbs_sha256: bytes) -> str:
    if der is None:
        return "the certificate is missing"
    try:
        certificate = x509.load_der_x509_certificate(der)
        number, tbs = certificate.serial_number, certificate.tbs_certificate_bytes
    except ValueError:
        return "the certificate cannot be parsed"
    if number != int(serial, 16):
        return "the certificate has another serial number"
    return "" if hashlib.sha256(tbs).digest() == tbs_sha256 else "the certificate is not the one of its intent"


def _wrong_crls(connection: Connection) -> Iterator[str]:
    c = crls.c
    for row in connection.execute(select(c.issuer, c.number, c.der).where(c.der.is_not(None))):
        try:
            found = x509.load_der_x509_crl(row.der).extensions.get_extension_for_class(x509.CRLNumber)
            if found.value.crl_number == row.number:
                continue
        except (ValueError, x509.ExtensionNotFound):
            pass
        yield f"{row.issuer}/{row.number}"


def _unknown_answers(connection: Connection, store: Path) -> Iterator[str]:
    try:
        reader = LmdbReader(store)
    except StoreError:
        return  # there is none yet: nothing was answered
    try:
        for label, der in connection.execute(select(issuers.c.label, issuers.c.certificate_der)).all():
            serials = reader.serials(key_prefix(issuer_tag(der), "sha1"))
            while chunk := [serial_hex(n) for _, n in zip(range(_CHUNK), serials, strict=False)]:
                yield from _unknown(connection, label, chunk)
    finally:
        reader.close()


def _unknown(connection: Connection, issuer: str, serials: Sequence[str]) -> list[str]:
    c = certificates.c
    known = set(connection.scalars(select(c.serial).where(c.issuer == issuer, c.serial.in_(serials), _ISSUED)))
    return [serial for serial in serials if serial not in known]


def _found(check: str, wrong: list[str], detail: str) -> Finding:
    return Finding(check=check, ok=not wrong, count=len(wrong), detail=detail, examples=wrong[:_EXAMPLES])
