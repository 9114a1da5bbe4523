"""The signing budget as Prometheus sees it: read when it is scraped, so that a plan that ends leaves no trace."""

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from signer_pool.budget import SigningBudget

LEAST_HEADROOM = -1.0
"""Headroom is cut off here: it stands for "twice the capacity, or more, or a key that cannot sign at all"."""


class BudgetCollector(Collector):
    """Exports one budget; registers itself in `registry`. Must be scraped in the budget's own event loop."""

    def __init__(self, budget: SigningBudget, registry: CollectorRegistry) -> None:
        self._budget = budget
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return the families of the moment."""
        families = _Families()
        budget = self._budget
        for one in budget.capacities():
            if one.signs_per_s > 0:  # else it was not measured yet
                families.capacity.add_metric([one.token, one.key], one.signs_per_s)
        for plan in budget.plans:
            rates: dict[str, float] = {}
            for commitment in plan.commitments:
                rates[commitment.work] = rates.get(commitment.work, 0.0) + commitment.signs_per_s
            for work, rate in rates.items():
                families.committed.add_metric([plan.name, work], rate)
        for outlook in budget.outlooks():
            free = outlook.headroom
            value = free if math.isnan(free) else max(free, LEAST_HEADROOM)
            families.headroom.add_metric([outlook.plan, outlook.tokens], value)
        families.delayed.add_metric([], budget.delayed_s)
        for reason, count in budget.refused.items():
            families.refused.add_metric([reason], count)
        return families.all()

    def describe(self) -> Iterable[Metric]:
        """Return the families without samples: the registry asks, to find names that are taken."""
        return _Families().all()


class _Families:
    def __init__(self) -> None:
        self.capacity = GaugeMetricFamily(
            "certmill_signer_capacity_signs_per_second",
            "What the ready lanes of a token sign with a key if they do nothing else, as measured",
            labels=["token", "key"],
        )
        self.committed = GaugeMetricFamily(
            "certmill_signer_committed_signs_per_second",
            "Signatures a second that a plan (now, or a later year) needs, by kind of work",
            labels=["plan", "work"],
        )
        self.headroom = GaugeMetricFamily(
            "certmill_signer_budget_headroom_ratio",
            "Share of the signing capacity that a plan leaves free, with all tokens and with the worst one gone; "
            "cut off at -1 (twice the capacity, or a key that cannot sign); NaN: not measured yet",
            labels=["plan", "tokens"],
        )
        self.delayed = CounterMetricFamily(
            "certmill_signer_bulk_delayed_seconds", "Seconds by which bulk work was held back"
        )
        self.refused = CounterMetricFamily(
            "certmill_signer_bulk_refused", "Bulk work that the signing budget refused", labels=["reason"]
        )

    def all(self) -> tuple[Metric, ...]:
        return self.capacity, self.committed, self.headroom, self.delayed, self.refused
