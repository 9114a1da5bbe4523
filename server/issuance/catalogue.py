"""Reading certificates back: one by serial number, or pages of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Exists, Text, cast, exists, select, text
from sqlalchemy.sql import ColumnElement

from server.errors import NotFound
from server.storage.database import AnyRow, Database
from server.storage.schema import HAS_PREDECESSOR, State, certificates


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFilter:
    """What a search asks for; times in seconds since 1970. `after_id` continues below that row."""

    profile: str | None = None
    status: str | None = None
    dns_name: str | None = None
    subject: str | None = None
    expires_before: int | None = None
    expires_after: int | None = None
    renewed: bool | None = None
    after_id: int | None = None
    limit: int = 100


class Catalogue:
    """The issued certificates of one issuer; a client sees its own."""

    def __init__(self, database: Database, issuer_label: str) -> None:
        self._database = database
        self._issuer = issuer_label

    async def one(self, serial: str, *, client: str) -> AnyRow:
        """Return the row of a certificate; raises `NotFound`."""
        c = certificates.c
        query = select(certificates).where(
            c.issuer == self._issuer, c.serial == serial, c.client == client, c.state == State.ISSUED
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound(
                f"no certificate {serial} of yours",
                remedy="check the serial number; a client sees only the certificates that it asked for",
            )
        return row

    async def successor(self, serial: str, *, client: str) -> AnyRow | None:
        """Return the row of the issued certificate that renews this one."""
        c = certificates.c
        query = select(certificates).where(
            c.issuer == self._issuer, c.renews == serial, text(HAS_PREDECESSOR), c.client == client,
            c.state == State.ISSUED,
        )  # fmt: skip
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    async def page(self, wanted: CertificateFilter, *, client: str, now: int) -> Sequence[AnyRow]:
        """Return up to `limit` rows, newest first."""
        c = certificates.c
        query = (
            select(certificates)
            # SQLite would take the index on state, which is nearly all certificates of everybody.
            .with_hint(certificates, "INDEXED BY ix_certificates_client", "sqlite")
            .where(c.issuer == self._issuer, c.client == client, c.state == State.ISSUED)
            .where(*_conditions(wanted, now))
            .order_by(c.id.desc())
            .limit(wanted.limit)
        )
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()


def _conditions(wanted: CertificateFilter, now: int) -> list[ColumnElement[bool]]:
    c = certificates.c
    conditions: list[ColumnElement[bool]] = []
    if wanted.after_id is not None:
        conditions.append(c.id < wanted.after_id)
    if wanted.profile is not None:
        conditions.append(c.profile.startswith(wanted.profile + "@", autoescape=True))
    if wanted.dns_name is not None:
        # dns_names is a JSON array of names that cannot hold quotes: a quoted name matches a whole element.
        conditions.append(cast(c.dns_names, Text).contains(f'"{wanted.dns_name}"', autoescape=True))
    if wanted.subject is not None:
        # SQLite's LIKE ignores case, PostgreSQL's does not.
        conditions.append(c.subject.icontains(wanted.subject, autoescape=True))
    if wanted.expires_before is not None:
        conditions.append(c.not_after < wanted.expires_before)
    if wanted.expires_after is not None:
        conditions.append(c.not_after >= wanted.expires_after)
    if wanted.renewed is not None:
        conditions.append(has_successor() if wanted.renewed else ~has_successor())
    if wanted.status == "revoked":
        conditions.append(c.revoked_at.is_not(None))
    elif wanted.status == "expired":
        conditions += [c.revoked_at.is_(None), c.not_after < now]
    elif wanted.status == "good":
        conditions += [c.revoked_at.is_(None), c.not_after >= now]
    return conditions


def has_successor() -> Exists:
    """Return the condition that a row of `certificates` was renewed; the index on `renews` answers it."""
    c, successor = certificates.c, certificates.alias("successor")
    indexed = HAS_PREDECESSOR.replace("renews", "successor.renews").replace("state", "successor.state")
    return exists().where(successor.c.issuer == c.issuer, successor.c.renews == c.serial, text(indexed))
