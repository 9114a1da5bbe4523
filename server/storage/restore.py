"""`certmill db restore`: a backup becomes the database, and nothing that was published goes backwards. Blocking.

A backup does not know what came after it. Serial numbers are random and do not repeat; CRL numbers would, so they
jump; revocations would be undone, so those of the last published CRLs are done again.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography import x509
from sqlalchemy import Connection, delete, func, insert, select, update

from pkix.names import serial_hex
from server.config import Config
from server.errors import AlreadyRunning, Conflict, InvalidRequest
from server.home import Home, exclusive
from server.storage.backup import (
    POSTGRES_MAGIC,
    SQLITE_MAGIC,
    OnProgress,
    beside,
    copy_sqlite,
    require_readable,
    require_sound,
    sync,
    whole_file,
)
from server.storage.blocking import blocking
from server.storage.check import LOST
from server.storage.migrate import revision, revision_of, upgrade
from server.storage.pg_tools import run_tool
from server.storage.place import Place, PostgresPlace, SqlitePlace
from server.storage.postgres_locks import PRESENT
from server.storage.schema import State, audit_log, authorities, certificates, crls, issuers, ocsp_responses

JUMP, JUMP_A_SECOND = 1000, 10
"""CRL numbers go on this far above the backup's last: more than all authorities can have used since."""


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the backup. `revoked_again`: revocations of the published CRLs that it did not know.

    `lost`: those of them whose certificates it did not know either. `crl_numbers`: the next is above, by issuer.
    """

    database: str
    certificates: int
    crl_numbers: dict[str, int]
    revoked_again: int
    lost: int
    kept: str | None


def restore(
    config: Config,
    place: Place,
    source: Path,
    crl_files: Sequence[Path],
    on_progress: OnProgress,
    *,
    overwrite: bool,
) -> Restored:
    """Make the backup the database of `place`; raises `RequestRefused`, `AlreadyRunning` or `StorageError`."""
    home = Home(config.home)
    home.create()
    _require_kind(source, place)
    with exclusive(home):
        published = [*crl_files, *(home.public / "crl").glob("*.crl")]
        if isinstance(place, SqlitePlace):
            return _restore_file(place, source, published, on_progress, overwrite=overwrite)
        return _restore_dump(place, source, published, overwrite=overwrite)


def _require_kind(source: Path, place: Place) -> None:
    wanted = SQLITE_MAGIC if isinstance(place, SqlitePlace) else POSTGRES_MAGIC
    try:
        with source.open("rb") as file:
            found = file.read(len(SQLITE_MAGIC))
    except OSError as error:
        raise InvalidRequest(
            f"{source} cannot be read ({error.strerror})", field="FILE", remedy="name a backup"
        ) from None
    if not found.startswith(wanted):
        kind = "SQLite" if isinstance(place, SqlitePlace) else "PostgreSQL"
        raise InvalidRequest(
            f"{source} is no backup of a {kind} database, which storage.database names",
            field="FILE",
            remedy="set storage.database as it was when the backup was made (docs/operating.md)",
        )


def _restore_file(
    place: SqlitePlace, source: Path, published: Sequence[Path], on_progress: OnProgress, *, overwrite: bool
) -> Restored:
    path = place.path
    if path.exists() and not overwrite:
        raise _not_empty(place)
    with whole_file(path) as partial:
        copy_sqlite(source, partial, on_progress)
        require_sound(partial)
        upgrade(SqlitePlace(partial))
        done = blocking(SqlitePlace(partial), lambda connection: _adjust(connection, published, str(place)))
        kept = _put_aside(path) if path.exists() else None
    return msgspec.structs.replace(done, kept=kept)


def _put_aside(path: Path) -> str:
    """Keep the present database, with what stands beside it and is part of it."""
    kept = path.with_name(f"{path.name}.before-restore-{int(time.time())}")
    for file, name in zip((path, *beside(path)), (kept, *beside(kept)), strict=True):
        if file.exists():
            file.replace(name)
    sync(path.parent)
    return str(kept)


def _restore_dump(place: PostgresPlace, source: Path, published: Sequence[Path], *, overwrite: bool) -> Restored:
    require_readable(source)
    if blocking(place, _authorities_present):
        raise AlreadyRunning(f"an authority runs on {place}: stop every one of them first")
    empty = revision(place) is None
    if not empty and not overwrite:
        raise _not_empty(place)
    how = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
    run_tool("pg_restore", [*how, *([] if empty else ["--clean", "--if-exists"]), str(source)], place)
    upgrade(place)
    return blocking(place, lambda connection: _adjust(connection, published, str(place)))


def _authorities_present(connection: Connection) -> bool:
    query = (
        "select 1 from pg_locks where locktype = 'advisory' and classid = %s and objsubid = 2 "
        "and database = (select oid from pg_database where datname = current_database())"
    )
    return connection.exec_driver_sql(query % PRESENT).first() is not None


def _not_empty(place: Place) -> Conflict:
    return Conflict(
        f"{place} is not empty",
        remedy="restore into an empty one, or say --overwrite: what only the present one knows is then lost",
    )


def _adjust(connection: Connection, published: Sequence[Path], database: str) -> Restored:
    """Let nothing go backwards; all of it or nothing."""
    now = int(time.time())
    if revision_of(connection) is None:
        raise InvalidRequest("the backup holds no tables of certmill", field="FILE", remedy="name another backup")
    connection.rollback()
    numbers: dict[str, int] = {}
    again = lost = 0
    with connection.begin():
        connection.execute(delete(authorities))
        for label, der in connection.execute(select(issuers.c.label, issuers.c.certificate_der)).all():
            issuer = x509.load_der_x509_certificate(der)
            found = [crl for crl in map(_crl, published) if crl is not None and _is_of(crl, issuer)]
            numbers[label] = _jump(connection, label, max(map(_number, found), default=0), now)
            for crl in sorted(found, key=_number):
                known, unknown = _revoke(connection, label, issuer, crl, now)
                again, lost = again + known + unknown, lost + unknown
        detail = {"crl_numbers": numbers, "revoked_again": again, "lost": lost}
        entry = {"at": now, "actor": "certmill", "action": "database.restored", "object": "-", "request_id": "-"}
        connection.execute(insert(audit_log), {**entry, "detail": detail})
        issued = select(func.count()).select_from(certificates).where(certificates.c.state == State.ISSUED.value)
        count = connection.scalar(issued) or 0
    return Restored(
        database=database, certificates=count, crl_numbers=numbers, revoked_again=again, lost=lost, kept=None
    )


def _jump(connection: Connection, label: str, published: int, now: int) -> int:
    """Use up CRL numbers until above everything that can have been published; a row without CRL marks the last."""
    c = crls.c
    row = connection.execute(select(func.max(c.number), func.max(c.this_update)).where(c.issuer == label)).one()
    last, at = row[0] or 0, row[1] or now
    number = max(published, last + JUMP + JUMP_A_SECOND * max(0, now - at))
    taken = {"issuer": label, "number": number, "this_update": at, "next_update": at, "entries": 0}
    connection.execute(insert(crls), taken)
    return number


def _revoke(
    connection: Connection, label: str, issuer: x509.Certificate, crl: x509.CertificateRevocationList, now: int
) -> tuple[int, int]:
    """Revoke what the CRL says; returns how many certificates were known, and how many were not."""
    c, o = certificates.c, ocsp_responses.c
    known = unknown = 0
    for entry in crl:
        serial = serial_hex(entry.serial_number)
        here = (c.issuer == label, c.serial == serial)
        values = {"revoked_at": int(entry.revocation_date_utc.timestamp()), "reason": _reason(entry)}
        row = connection.execute(select(c.state, c.revoked_at).where(*here)).one_or_none()
        if row is not None and row.revoked_at is not None:
            continue
        if row is not None and row.state == State.ISSUED.value:
            connection.execute(update(certificates).where(*here).values(values))
            connection.execute(
                update(ocsp_responses).where(o.issuer == label, o.serial == serial).values(refresh_at=0)
            )
            known += 1
        else:
            connection.execute(delete(certificates).where(*here))
            connection.execute(insert(certificates), {**_lost(label, serial, issuer, now), **values})
            unknown += 1
        audited = {"at": now, "actor": "certmill", "action": "certificate.revoked", "object": serial}
        detail = {"reason": values["reason"], "from_crl": _number(crl)}
        connection.execute(insert(audit_log), {**audited, "request_id": "-", "detail": detail})
    return known, unknown


def _lost(label: str, serial: str, issuer: x509.Certificate, now: int) -> dict[str, object]:
    """Make the row of a certificate of which nothing is left but that it is revoked: it stays so."""
    return {
        "issuer": label,
        "serial": serial,
        "state": State.ISSUED.value,
        "profile": LOST,
        "client": "certmill",
        "request_id": "-",
        "subject": "",
        "dns_names": [],
        "tbs_sha256": b"",
        "spki_sha256": b"",
        "not_before": now,
        "not_after": int(issuer.not_valid_after_utc.timestamp()),
        "created_at": now,
    }


def _reason(entry: x509.RevokedCertificate) -> str:
    try:
        return entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
    except x509.ExtensionNotFound:
        return x509.ReasonFlags.unspecified.value


def _crl(path: Path) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_der_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return None


def _is_of(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    return crl.issuer == issuer.subject and crl.is_signature_valid(key)  # type: ignore[arg-type]


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
