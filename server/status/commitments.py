"""What the keys have to sign, now and in later years: counted in the database for the signing budget."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from server.clock import epoch
from server.errors import ServerError
from server.ground import Ground
from server.keys.hierarchy import ISSUING, OCSP, ROOT
from server.storage.schema import certificates, ocsp_responses
from signer_pool.budget import NOW, REFRESH, Commitment, Freshness, Plan, SigningBudget

INTERVAL_S = 15.0
LIVE_COUNT_AGE_S = 600
"""Counting all live responses reads the whole table, some 0.1 s for a million; they change by the day."""

_HOUR_S, _DAY_S = 3600, 86400
MEAN_REFRESH_SHARE = 0.45
"""schedule.py signs a response again after 40 to 50 % of its life."""
ROTATION_S = _DAY_S
"""A new responder certificate or key may be needed any day (a compromise gives no notice); every live response
is then signed once within this time. Bulk work leaves room for it always."""
ROOT_CRL_INTERVAL_H = 30 * 24

WORKING_S_A_YEAR = 250 * 8 * _HOUR_S
"""Ministries issue in office hours: a year's certificates arrive within them."""
PEAK_FACTOR = 10
"""The busiest hour of single calls, against the average working hour. (A bureau's whole list is bulk work: it
is no commitment, the budget holds it back.)"""

# BR 4.9.9: signed again 8 h before nextUpdate and within 4 d of thisUpdate; lives under 16 h: before their half.
_BEFORE_NEXT_UPDATE_S, _AFTER_THIS_UPDATE_S, _SHORT_LIFE_S = 8 * _HOUR_S, 4 * _DAY_S, 16 * _HOUR_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """Live certificates and the responses that are kept fresh for them, counted at `at`."""

    at: int
    certificates: int
    responses: int

    @property
    def ratio(self) -> float:
        """Return responses per certificate: 1, or more where SHA-256 was asked for."""
        return max(1.0, self.responses / self.certificates) if self.certificates else 1.0


class Commitments:
    """Counts what is committed under one issuer and hands it to the budget. `plan`: certificates by year."""

    def __init__(
        self,
        *,
        ground: Ground,
        budget: SigningBudget,
        issuer_label: str,
        validity_h: float,
        crl_interval_h: float,
        plan: Mapping[str, int],
        root_crl_interval_h: float = ROOT_CRL_INTERVAL_H,
    ) -> None:
        self._database = ground.database
        self._clock = ground.clock
        self._logger = ground.logger
        self._budget = budget
        self._label = issuer_label
        self._refresh_s = MEAN_REFRESH_SHARE * validity_h * _HOUR_S
        self._crls = (
            Commitment("crl", ISSUING, 1 / (crl_interval_h * _HOUR_S)),
            Commitment("crl", ROOT, 1 / (root_crl_interval_h * _HOUR_S)),
        )
        self._plan = {int(year): count for year, count in sorted(plan.items())}
        self._live: _Live | None = None
        self._bulk: deque[tuple[int, int]] = deque()  # (when, certificates admitted as bulk until then)

    async def run(self) -> None:
        """Count and commit until cancelled; while the database fails, the budget goes on with what it knows."""
        while True:
            try:
                plans, freshness = await self.collect()
                self._budget.commit(plans, freshness)
            except ServerError as error:
                self._logger.error("signing commitments not counted, will try again", error=str(error))
            await asyncio.sleep(INTERVAL_S)

    async def collect(self) -> tuple[list[Plan], Freshness]:
        """Return the plan of now, one for each later year of the plan, and the freshness; raises `StorageError`.

        Costs a few milliseconds of the database's reader, and a count of all responses every ten minutes.
        """
        moment = self._clock()
        now = epoch(moment)
        async with self._database.read() as connection:
            freshness = await self._freshness(connection, now)
            issued_per_s = await self._issued_per_s(connection, now)
            if self._live is None or not 0 <= now - self._live.at < LIVE_COUNT_AGE_S:
                self._live = await self._count_live(connection, now)
            live = self._live
        plans = [self._committed(NOW, live.responses, issued_per_s, live.ratio)]
        for year, count in self._plan.items():
            if year > moment.year:
                # Certificates of one year's validity: at the end of the year all of that year's are live.
                busiest_per_s = PEAK_FACTOR * count / WORKING_S_A_YEAR
                plans.append(self._committed(str(year), count * live.ratio, busiest_per_s, live.ratio))
        return plans, freshness

    def _committed(self, name: str, responses: float, issued_per_s: float, ratio: float) -> Plan:
        work = (
            Commitment(REFRESH, OCSP, responses / self._refresh_s),
            Commitment("rotation", OCSP, responses / ROTATION_S),
            *self._crls,
            Commitment("issuance", ISSUING, issued_per_s),
            Commitment("issuance", OCSP, issued_per_s * ratio),
        )
        return Plan(name, work)

    async def _count_live(self, connection: AsyncConnection, now: int) -> _Live:
        # The condition on the issuer stands in FILTER: as a WHERE it leads SQLite to the primary
        # key's index, which is slower than the scan by a factor of 15 (all rows have that issuer).
        o = ocsp_responses.c
        # Every live certificate has a response with a SHA-1 CertID: it was issued with one.
        query = select(
            func.count().filter(o.issuer == self._label, o.hash_name == "sha1"),
            func.count().filter(o.issuer == self._label),
        ).where(o.not_after >= now)
        live, responses = (await connection.execute(query)).one()
        return _Live(at=now, certificates=live, responses=responses)

    async def _freshness(self, connection: AsyncConnection, now: int) -> Freshness:
        """Look at overdue responses only, by their index: nearly none, unless there is trouble (1.5 µs each)."""
        o = ocsp_responses.c
        life = o.next_update - o.this_update
        by_next_update = o.next_update - _BEFORE_NEXT_UPDATE_S
        by_this_update = o.this_update + _AFTER_THIS_UPDATE_S
        hard_limit = case(
            (life < _SHORT_LIFE_S, o.this_update + life / 2),
            (by_next_update < by_this_update, by_next_update),
            else_=by_this_update,
        )
        live = o.not_after >= now
        overdue_ones = (o.issuer == self._label, o.refresh_at <= now)
        query = select(func.count().filter(live), func.min(hard_limit).filter(live)).where(*overdue_ones)
        overdue, limit = (await connection.execute(query)).one()
        return Freshness(overdue, None if limit is None else float(limit) - now)

    async def _issued_per_s(self, connection: AsyncConnection, now: int) -> float:
        """Return the rate of the last hour or of the last day, whichever is larger, without bulk work.

        Bulk work gets what is left over, it is no commitment: counted here, it would throttle itself. (What
        was admitted and then failed is taken off too: an error on the small side, for a day at most.)
        """
        admitted = self._budget.admitted(ISSUING)
        while self._bulk and self._bulk[-1][0] > now:  # the clock was set back
            self._bulk.pop()
        self._bulk.append((now, admitted))
        while self._bulk[0][0] < now - _DAY_S:
            self._bulk.popleft()
        last_id = (await connection.execute(select(func.max(certificates.c.id)))).scalar_one()
        first, end, rates = 1, int(last_id or 0) + 1, []
        for window_s in (_DAY_S, _HOUR_S):
            first = await _first_since(connection, now - window_s, first, end)
            before = next(count for at, count in self._bulk if at >= now - window_s)
            rates.append(max(0, end - first - (admitted - before)) / window_s)
        return max(rates)


async def _first_since(connection: AsyncConnection, moment: int, low: int, high: int) -> int:
    """Return the first certificate's id in [low, high) that was created at `moment` or later, else `high`.

    Ids grow with time, so twenty look-ups find it among a million rows, without an index on the time.
    """
    c = certificates.c
    while low < high:
        middle = (low + high) // 2
        query = select(c.created_at).where(c.id >= middle).order_by(c.id).limit(1)
        if (await connection.execute(query)).scalar_one() < moment:
            low = middle + 1
        else:
            high = middle
    return low
