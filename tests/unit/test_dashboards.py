"""Dashboards and alert rules ask only for metrics and labels that the code registers."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from ocsp.answers import Answers
from ocsp.forward import Forwarder
from ocsp.metrics import WorkerMetrics
from server.metrics import AuthorityMetrics
from server.web.admin import _Merged
from signer_pool.budget import NOW, Commitment, Freshness, Plan, SigningBudget
from signer_pool.budget_metrics import BudgetCollector
from signer_pool.metrics import PoolMetrics
from signer_pool.pace import Capacity

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("dashboards/*.json"), *ROOT.glob("deploy/prometheus/*.rules.yml")])
SCRAPE_LABELS = {"job", "instance"}
NO_LABELS: frozenset[str] = frozenset()
WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "sum", "min", "max", "avg", "count", "rate", "increase",
    "changes", "time", "histogram_quantile", "clamp_min", "bool",
}  # fmt: skip
SUFFIXES = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}

Known = Mapping[str, tuple[str, frozenset[str]]]


def registered() -> Known:
    """Map every sample name that certmill exports to the type of its metric and its labels."""
    registry = CollectorRegistry()
    AuthorityMetrics(registry)
    PoolMetrics(registry, priorities=["p"], queue_depth=lambda _: 0)
    budget = SigningBudget(lambda: [Capacity(token="t", key="k", signs_per_s=1)], clock=lambda: 0.0)
    budget.commit([Plan(NOW, [Commitment("refresh", "k", 0.1)])], Freshness(0, None))
    BudgetCollector(budget, registry)
    known: dict[str, tuple[str, frozenset[str]]] = {}
    known |= _samples(registry, NO_LABELS)
    workers = CollectorRegistry()
    connections: Any = SimpleNamespace(handovers=0, refused_connections=0, open_connections=lambda: 0)
    metrics = WorkerMetrics(workers)
    metrics.watch(
        answers=Answers(Path("none"), max_age_cap_s=1), connections=connections, forwarder=Forwarder(Path("none"))
    )
    known |= _samples(workers, frozenset({"process"}))
    merged = CollectorRegistry()
    merged.register(_Merged({"ocsp-0": None}))
    known |= _samples(merged, frozenset({"process"}))
    known["up"] = ("gauge", NO_LABELS)  # Prometheus's own
    for name in ("process_resident_memory_bytes", "process_open_fds"):  # prometheus-client's own
        known[name] = ("gauge", NO_LABELS)
    return known


def _samples(registry: CollectorRegistry, added: frozenset[str]) -> dict[str, tuple[str, frozenset[str]]]:
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for collector in set(registry._collector_to_names):
        # A metric with labels has no sample before its first use: the labels stand in the wrapper.
        declared = set(collector._labelnames) if isinstance(collector, MetricWrapperBase) else set()
        for family in collector.collect():
            labels = declared | {name for sample in family.samples for name in sample.labels} | added
            for suffix in SUFFIXES[family.type]:
                extra = {"le"} if suffix == "_bucket" else set()
                found[family.name + suffix] = (family.type, frozenset(labels - {"le"} | extra))
    return found


def expressions(path: Path) -> Iterator[str]:
    """Yield every PromQL expression of a dashboard or rule file."""
    if path.suffix == ".json":
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                yield target["expr"]
    else:
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule["expr"]


def complaints(expression: str, known: Known) -> list[str]:
    """Say what is wrong with an expression; nothing if all is well."""
    found: list[str] = []
    bare = re.sub(r'"[^"]*"', '""', expression)
    labels_by_metric: dict[str, set[str]] = {}
    for rated, name, selector in re.findall(
        r"(\b(?:rate|increase)\s*\(\s*)?([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?", _without_groupings(bare)
    ):
        if name in WORDS:
            continue
        if name not in known:
            found.append(f"no metric {name}")
            continue
        kind, labels = known[name]
        used = set(re.findall(r"([a-z_]+)\s*(?:=|!)", selector))
        labels_by_metric.setdefault(name, set()).update(labels)
        found += [f"{name} has no label {label}" for label in used - labels - SCRAPE_LABELS]
        if rated and kind == "gauge":
            found.append(f"{name} is a gauge, rate() and increase() are for counters")
    available = set().union(*labels_by_metric.values()) | SCRAPE_LABELS
    grouped = {label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", bare) for label in group.split(",")}
    return found + [f"nothing has a label {label}" for label in grouped - available]


def _without_groupings(expression: str) -> str:
    """Drop `by (…)`, ranges and numbers: what is left are metrics and functions."""
    expression = re.sub(r"\bby\s*\([^)]*\)", "", expression)
    expression = re.sub(r"\[[^\]]*\]", "", expression)
    return re.sub(r"\b[0-9.]+(e-?[0-9]+)?\b", "", expression)


ALL = [(path.name, expression) for path in FILES for expression in expressions(path)]


@pytest.fixture(scope="module")
def known() -> Known:
    return registered()


def test_there_is_something_to_look_at() -> None:
    assert {path.name for path in FILES} == {"certmill.json", "certmill.rules.yml"}
    assert len(ALL) > 50


@pytest.mark.parametrize(("file", "expression"), ALL)
def test_queries_name_only_what_exists(known: Known, file: str, expression: str) -> None:
    assert complaints(expression, known) == [], file


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(certmill_certificates_isued_total[5m])", "no metric certmill_certificates_isued_total"),
        ("certmill_certificates_issued", "no metric certmill_certificates_issued"),
        ('certmill_signer_lanes{sate="ready"}', "certmill_signer_lanes has no label sate"),
        ("sum by (result) (certmill_signer_lanes)", "nothing has a label result"),
        ('certmill_ocsp_store_open{worker=~"1|2"}', "certmill_ocsp_store_open has no label worker"),
        (
            "rate(certmill_crl_number[5m])",
            "certmill_crl_number is a gauge, rate() and increase() are for counters",
        ),
        ("certmill_signer_wait_seconds_total", "no metric certmill_signer_wait_seconds_total"),
    ],
)
def test_check_finds_what_is_wrong(known: Known, expression: str, complaint: str) -> None:
    assert complaints(expression, known) == [complaint]


def test_panels_tell_people_what_to_do() -> None:
    for panel in json.loads((ROOT / "dashboards/certmill.json").read_text())["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_alerts_say_what_it_means_and_what_to_do() -> None:
    for path in ROOT.glob("deploy/prometheus/*.rules.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                assert set(rule["annotations"]) == {"summary", "description", "runbook"}
                assert rule["labels"]["severity"] in {"page", "ticket"}
