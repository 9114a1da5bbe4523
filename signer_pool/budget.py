"""The signing budget: what the tokens can sign a second, against what is committed to be signed.

The unit is the HSM-second: one second of all ready lanes. Lanes are shared by keys, so demands of several keys
add up as shares of that second: `utilisation = Σ demand(key) ÷ capacity(key)`. What commitments and a reserve
leave over refills a bucket of one HSM-second, from which bulk work is paid before it is queued. Bulk that
would have to wait too long, or that comes while OCSP responses are in danger of becoming stale, is refused.

Pure: no I/O, no tasks, the clock is a parameter. One object belongs to one event loop; it takes no lock.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from signer_pool.errors import BudgetExceeded
from signer_pool.pace import Capacity

NOW = "now"
"""Name of the plan that is being kept at present: the one that bulk work has to leave room for."""
REFRESH = "refresh"
"""The work whose keys sign the responses that `Freshness` speaks of."""
BURST_S = 1.0
"""Size of the bucket, in HSM-seconds."""
RETRY_S = 15
"""Retry-After when only new figures can change the answer: commitments are counted this often."""
LONGEST_RETRY_S = 60

Reason = Literal["freshness", "committed", "delay"]
REASONS: tuple[Reason, ...] = ("freshness", "committed", "delay")
Tokens = Literal["all", "one_gone"]


@dataclass(frozen=True, slots=True)
class Commitment:
    """Signatures a second that one kind of work needs from one key, averaged over the time it has for them."""

    work: str
    key: str
    signs_per_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything committed at one time: `NOW`, or a later year."""

    name: str
    commitments: Sequence[Commitment]


@dataclass(frozen=True, slots=True)
class Freshness:
    """How many responses are overdue, and the seconds until the first of them breaks its hard limit.

    `slack_s` is None when nothing is overdue, negative when the limit is broken.
    """

    overdue: int
    slack_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How a plan fits the tokens: all of them, or without the one whose loss is worst.

    `utilisation` is infinite when a key with demand has no lane any more, NaN when nothing is measured yet.
    `unmeasured` keys have demand, but were never measured: they are left out of it. `lost` is the token
    that is thought away.
    """

    plan: str
    tokens: Tokens
    utilisation: float
    lost: str | None
    unmeasured: tuple[str, ...]

    @property
    def headroom(self) -> float:
        """Return the share of the capacity that is free; negative when it does not suffice."""
        return 1.0 - self.utilisation

    @property
    def sentence(self) -> str:
        """Say it in words."""
        tokens = "with all tokens" if self.lost is None else f"without token {self.lost!r}"
        if math.isnan(self.utilisation):
            return f"{self.plan}: nothing is measured yet"
        if math.isinf(self.utilisation):
            return f"{self.plan}: {tokens}, not every key that is needed can sign"
        return f"{self.plan}: {tokens}, {self.utilisation:.1%} of the capacity is committed"


def utilisation(commitments: Iterable[Commitment], capacities: Iterable[Capacity]) -> float:
    """Return the share of each second that all lanes spend on commitments; infinite if a key has no capacity."""
    totals = _totals(capacities)
    return sum(rate / totals[key] if key in totals else math.inf for key, rate in _demand(commitments).items())


class SigningBudget:
    """Watches over what is left for bulk work.

    `capacities` tells what the ready lanes do at present; a key that is absent after it was measured has no
    lane at the moment. `reserve` is the share of the capacity that bulk work never gets: it covers what no
    commitment counts (revocations, new answers, bursts of single calls). Each call costs some 10 µs.
    """

    def __init__(
        self,
        capacities: Callable[[], Sequence[Capacity]],
        *,
        clock: Callable[[], float],
        reserve: float = 0.2,
        max_delay_s: float = 5.0,
    ) -> None:
        if not 0 <= reserve < 1 or max_delay_s < 0:
            raise ValueError("reserve must be at least 0 and below 1, max_delay_s at least 0")
        self.capacities = capacities
        self.plans: tuple[Plan, ...] = ()
        self.delayed_s = 0.0
        self.refused: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self._clock = clock
        self._reserve = reserve
        self._max_delay_s = max_delay_s
        self._now: Sequence[Commitment] = ()
        self._freshness = Freshness(0, None)
        self._committed_at = self._settled_at = clock()
        self._totals: dict[str, float] = {}  # by key, as last measured: a key without a lane keeps its figure
        self._level_s = BURST_S  # below 0: what was promised to start later
        self._refill = 0.0  # HSM-seconds per second, since `_settled_at`
        self._admitted: Counter[str] = Counter()

    def commit(self, plans: Sequence[Plan], freshness: Freshness) -> None:
        """Take new figures: what has to be signed now and later, and how fresh what is signed is."""
        self.plans = tuple(plans)
        self._now = next((plan.commitments for plan in plans if plan.name == NOW), ())
        self._freshness = freshness
        self._settle()
        self._committed_at = self._settled_at

    def delay_bulk(self, key: str, count: int) -> float:
        """Spend `count` bulk signatures of one key; see `delay_bulk_of`."""
        return self.delay_bulk_of({key: count})

    def delay_bulk_of(self, counts: Mapping[str, int]) -> float:
        """Spend bulk signatures by key, all or nothing; return the seconds to wait before they are queued.

        Raises `BudgetExceeded` (nothing is spent) when that would be more than `max_delay_s`, when
        commitments leave nothing over, or when freshness is at risk. Keys that were never measured are free.
        """
        if min(counts.values(), default=0) < 0:
            raise ValueError("a count below 0")
        self._settle()
        self._guard_freshness()
        cost_s = sum(count / self._totals[key] for key, count in counts.items() if key in self._totals)
        delay_s = 0.0
        if cost_s > 0:
            delay_s = self._delay_s(cost_s)
            self._level_s -= cost_s
        self._admitted.update(counts)
        self.delayed_s += delay_s
        return delay_s

    def most_at_once(self, key: str) -> int | None:
        """Return the largest count that one call could be granted by a full bucket; None before measuring.

        Larger work has to be cut into pieces: it would be refused for ever.
        """
        self._settle()
        if key not in self._totals:
            return None
        # A hair less, so that rounding cannot refuse what is promised here.
        return int(self._largest_s() * self._totals[key] * (1 - 1e-9)) if self._refill > 0 else 0

    def give_back(self, key: str, count: int) -> None:
        """Take back what was spent on bulk work that was not queued after all."""
        self._admitted[key] -= count
        if key in self._totals:
            self._level_s = min(BURST_S, self._level_s + count / self._totals[key])

    def admitted(self, key: str) -> int:
        """Count the bulk signatures of a key that were let through since the start."""
        return self._admitted[key]

    def outlooks(self) -> list[Outlook]:
        """Compare each plan with all tokens, and with all but the one whose loss is worst."""
        capacities = self.capacities()
        self._totals |= _totals(capacities)
        return [outlook for plan in self.plans for outlook in self._compare(plan, capacities)]

    def _compare(self, plan: Plan, capacities: Sequence[Capacity]) -> tuple[Outlook, Outlook]:
        demand = _demand(plan.commitments)
        unmeasured = tuple(sorted(demand.keys() - self._totals.keys()))
        measured = [one for one in plan.commitments if one.key not in unmeasured]

        def look(tokens: Tokens, lost: str | None) -> Outlook:
            left = [one for one in capacities if one.token != lost]
            there = {one.key for one in left} - _totals(left).keys()  # and was only measured on the lost one
            share = utilisation((one for one in measured if one.key not in there), left)
            if demand and len(unmeasured) == len(demand):
                share = math.nan
            elif tokens == "one_gone" and not left:
                share = math.inf  # nothing signs without the only token
            return Outlook(plan=plan.name, tokens=tokens, utilisation=share, lost=lost, unmeasured=unmeasured)

        names = sorted({one.token for one in capacities})
        gone = [look("one_gone", name) for name in names] or [look("one_gone", None)]
        return look("all", None), max(gone, key=lambda outlook: outlook.utilisation)

    def _settle(self) -> None:
        """Refill the bucket up to now, at the rate that held since the last time, and find the new rate."""
        now = self._clock()
        self._level_s = min(BURST_S, self._level_s + self._refill * (now - self._settled_at))
        self._settled_at = now
        self._totals |= _totals(self.capacities())
        # A key that was never measured cannot count yet.
        demand = _demand(self._now)
        busy = sum(rate / self._totals[key] for key, rate in demand.items() if key in self._totals)
        self._refill = max(0.0, 1.0 - self._reserve - busy)

    def _largest_s(self) -> float:
        return BURST_S + self._max_delay_s * self._refill

    def _delay_s(self, cost_s: float) -> float:
        """Return how long work of this cost has to wait; raises `BudgetExceeded`."""
        if self._refill <= 0:
            raise self._refusal(
                "committed",
                "refresh, CRLs, rotation and issuing need all that the HSMs can sign, less the reserve of "
                f"{self._reserve:.0%}: nothing is left for bulk work",
                RETRY_S,
            )
        delay_s = max(0.0, (cost_s - self._level_s) / self._refill)
        if delay_s <= self._max_delay_s:
            return delay_s
        if cost_s > self._largest_s():
            detail = (
                f"this bulk work takes all HSM sessions {cost_s:.2f} s, more than the {self._largest_s():.2f} s "
                "that it can get at once: send less at a time"
            )
        else:
            detail = (
                f"bulk work has used up its share of the HSMs: this would have to wait {delay_s:.1f} s, "
                f"the bound is {self._max_delay_s:g} s"
            )
        raise self._refusal("delay", detail, delay_s - self._max_delay_s)

    def _guard_freshness(self) -> None:
        """Refuse bulk when signing what is overdue takes more than half of the time there is for it."""
        overdue, slack_s = self._freshness.overdue, self._freshness.slack_s
        if not overdue or slack_s is None:
            return
        left_s = slack_s - (self._settled_at - self._committed_at)
        keys = {one.key for one in self._now if one.work == REFRESH}
        needed_s = max((overdue / self._totals[key] for key in keys if key in self._totals), default=0.0)
        if needed_s > left_s / 2:
            raise self._refusal(
                "freshness",
                f"{overdue} OCSP responses are overdue and take all HSM sessions {needed_s:.1f} s, but the first "
                f"of them is too old in {max(left_s, 0.0):.1f} s: bulk work waits for them",
                max(needed_s, RETRY_S),
            )

    def _refusal(self, reason: Reason, detail: str, retry_after_s: float) -> BudgetExceeded:
        self.refused[reason] += 1
        whole_s = math.ceil(min(max(retry_after_s, 1.0), LONGEST_RETRY_S))
        return BudgetExceeded(detail, reason=reason, retry_after_s=whole_s)


def _totals(capacities: Iterable[Capacity]) -> dict[str, float]:
    """Add up capacities by key, over tokens; keys without any are not in it."""
    totals: dict[str, float] = {}
    for one in capacities:
        if one.signs_per_s > 0:
            totals[one.key] = totals.get(one.key, 0.0) + one.signs_per_s
    return totals


def _demand(commitments: Iterable[Commitment]) -> dict[str, float]:
    """Add up commitments by key; keys without any are not in it."""
    demand: dict[str, float] = {}
    for one in commitments:
        if one.signs_per_s > 0:
            demand[one.key] = demand.get(one.key, 0.0) + one.signs_per_s
    return demand
