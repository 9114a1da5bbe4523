"""A certificate has one successor: decided in the transaction that records the successor's intent."""

import datetime as dt
from collections.abc import Mapping, Sequence

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from server.clock import from_epoch
from server.errors import AlreadyRenewed, Overloaded, RenewalRefused
from server.issuance.order import PreparedOrder
from server.storage.database import AnyRow
from server.storage.schema import HAS_PREDECESSOR, State, certificates

_IN_THE_MAKING = ""
"""Stands for the serial number of a successor that may yet fail: whoever comes then asks again."""


class Succession:
    """The check of orders that renew: the old certificate is still to be renewed, and by nobody else."""

    def __init__(self, issuer_label: str, *, grace_days: int) -> None:
        self._issuer = issuer_label
        self._grace = dt.timedelta(days=grace_days)

    async def check(
        self, connection: AsyncConnection, batch: Sequence[PreparedOrder], now: int
    ) -> Mapping[int, Exception]:
        """Refuse renewals of what is revoked, ended too long ago or renewed. Costs nothing without renewals."""
        renewals = {index: p.order.renews for index, p in enumerate(batch) if p.order.renews is not None}
        if not renewals:
            return {}
        serials = sorted(set(renewals.values()))
        c = certificates.c
        old = select(c.serial, c.client, c.not_after, c.revoked_at).where(
            c.issuer == self._issuer, c.serial.in_(serials), c.state == State.ISSUED
        )
        new = select(c.renews, c.serial, c.state).where(
            c.issuer == self._issuer, c.renews.in_(serials), text(HAS_PREDECESSOR)
        )
        predecessors = {row.serial: row for row in await connection.execute(old)}
        successors = {
            row.renews: row.serial if row.state == State.ISSUED else _IN_THE_MAKING
            for row in await connection.execute(new)
        }
        refused: dict[int, Exception] = {}
        for index, serial in renewals.items():
            refusal = self._refusal(serial, predecessors.get(serial), successors.get(serial), now)
            if refusal is not None:
                refused[index] = refusal
            else:
                successors[serial] = _IN_THE_MAKING  # for a second one in this batch
        return refused

    def _refusal(self, serial: str, old: AnyRow | None, successor: str | None, now: int) -> Exception | None:
        if successor == _IN_THE_MAKING:
            return Overloaded(f"certificate {serial} is being renewed at this moment by another call")
        if successor is not None:
            return AlreadyRenewed(
                f"certificate {serial} was renewed before: see certificate {successor}",
                field="serial",
                remedy="renew the newer certificate, or ask for another one by POST /v1/certificates",
            )
        if old is None or old.revoked_at is not None:
            return _refused(f"certificate {serial} is revoked")
        end = from_epoch(old.not_after)
        if from_epoch(now) > end + self._grace:
            return _refused(
                f"certificate {serial} ended at {end:%Y-%m-%dT%H:%M:%SZ}, more than {self._grace.days} days ago"
            )
        return None


def _refused(why: str) -> RenewalRefused:
    return RenewalRefused(
        f"{why}: it cannot be renewed",
        field="serial",
        remedy="ask for a new certificate by POST /v1/certificates",
    )
