"""What the signer benchmark found: samples and their ratios, as lines, as JSON and as a drawing. Pure."""

import os
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtests.plot import Level, Line, Panel, chart
from loadtests.signer_load import KEYS, LANES, P256, RSA_2048, Key, Urgency

AT_LEAST = {
    "signer_rsa2048_vs_raw": 0.95,
    "signer_p256_vs_raw_unverified": 0.75,
    "signer_p256_vs_raw": 0.45,
    "signer_2_lanes_vs_1": 1.85,
}
_SLACK_MS = 10.0
_LOUD_CORES = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement of the pool, and the bare token's rate just before and after it."""

    key: str
    lanes: int
    verified: bool
    pool_per_s: float
    raw_per_s: float


@dataclass(slots=True, kw_only=True)
class Findings:
    """Everything that was measured. `batches`: key, lanes, batch size to signatures per second."""

    samples: list[Sample] = field(default_factory=list)
    two_raw: list[float] = field(default_factory=list)
    """What two processes with bare tokens sign together, divided by what one signs: the machine's bound."""
    batches: dict[str, dict[int, dict[int, float]]] = field(default_factory=dict)
    urgencies: list[Urgency] = field(default_factory=list)
    others_cores: float = 0.0

    def pool(self, key: Key, lanes: int, *, verified: bool) -> list[Sample]:
        """Return the samples of one setting, in the order of the rounds."""
        return [s for s in self.samples if (s.key, s.lanes, s.verified) == (key.label, lanes, verified)]

    def pool_per_s(self, key: Key, lanes: int, *, verified: bool) -> float:
        """Return the pool's rate."""
        return statistics.median(s.pool_per_s for s in self.pool(key, lanes, verified=verified))

    def vs_raw(self, key: Key, *, verified: bool) -> float:
        """Divide one lane by the bare token."""
        return statistics.median(s.pool_per_s / s.raw_per_s for s in self.pool(key, 1, verified=verified))

    def lanes_vs_one(self, key: Key, lanes: int) -> float:
        """Divide several lanes by one, round by round."""
        rounds = zip(self.pool(key, lanes, verified=True), self.pool(key, 1, verified=True), strict=True)
        return statistics.median(many.pool_per_s / one.pool_per_s for many, one in rounds)

    def raw_per_s(self, key: Key) -> float:
        """Return the bare token's rate."""
        return statistics.median(s.raw_per_s for s in self.samples if s.key == key.label)

    def ratios(self) -> dict[str, float]:
        """Return what the project promises, and what explains it."""
        found = {}
        for key in KEYS:
            found[f"signer_{key.label}_vs_raw"] = self.vs_raw(key, verified=True)
            found[f"signer_{key.label}_vs_raw_unverified"] = self.vs_raw(key, verified=False)
        found["signer_2_lanes_vs_1"] = self.lanes_vs_one(RSA_2048, 2)
        found["signer_4_lanes_vs_1"] = self.lanes_vs_one(RSA_2048, 4)
        found["raw_2_processes_vs_1"] = statistics.median(self.two_raw)
        found["signer_2_lanes_vs_2_processes"] = found["signer_2_lanes_vs_1"] / found["raw_2_processes_vs_1"]
        return found


def lines(found: Findings) -> list[str]:
    """Say it to people; the ratios, for programs too, come last."""
    said = [*_throughput(found), *map(_urgency, found.urgencies)]
    if found.others_cores > _LOUD_CORES:
        said.append(
            f"other programs kept {found.others_cores:.1f} cores busy meanwhile: repeat on a quiet machine"
        )
    ratios = found.ratios()
    for name, least in AT_LEAST.items():
        said.append(
            f"{name} {ratios[name]:.2f} (at least {least}: {'met' if ratios[name] >= least else 'MISSED'})"
        )
    for each in found.urgencies:
        name = f"signer_revocation_p99_ms_{each.key}_{_lanes(each.lanes).replace(' ', '_')}"
        met = "met" if each.p99_ms <= _bound_ms(each) else "MISSED"
        said.append(f"{name} {each.p99_ms:.1f} (at most {_bound_ms(each):.1f}: {met})")
    return said + [f"ratio {name} {value:.2f}" for name, value in ratios.items()]


def _bound_ms(one: Urgency) -> float:
    """Two batches as they were in this run, and some slack."""
    return 2 * one.batch_ms + _SLACK_MS


def details(found: Findings) -> dict[str, Any]:
    """Return everything, fit for JSON."""
    return {
        "ratios": {name: round(value, 3) for name, value in found.ratios().items()},
        "at_least": AT_LEAST,
        "raw_signs_per_s": {key.label: found.raw_per_s(key) for key in KEYS},
        "cores_busy_with_others": round(found.others_cores, 2),
        "signatures_per_s_by_key_lanes_batch_size": found.batches,
        "urgency": [asdict(each) | {"bound_ms": _bound_ms(each)} for each in found.urgencies],
        "samples": [asdict(each) for each in found.samples],
    }


def drawing(found: Findings) -> str:
    """Draw throughput by batch size and lanes, as SVG."""
    panels = [
        Panel(
            title=key.title,
            lines=[
                Line(_lanes(lanes), sorted(by_size.items())) for lanes, by_size in found.batches[key.label].items()
            ],
            levels=[Level("bare token, one process, not verified", found.raw_per_s(key))],
        )
        for key in (P256, RSA_2048)
    ]
    return chart(
        f"Signer pool on SoftHSM, {os.cpu_count()} cores: verified signatures per second",
        panels,
        x_label="signatures in a batch",
        y_label="signatures per second",
    )


def _throughput(found: Findings) -> Iterator[str]:
    yield f"{'signatures/s':22}{'raw':>8}" + "".join(f"{_lanes(lanes):>11}" for lanes in LANES)
    for key in KEYS:
        for verified in (True, False):
            title = f"{key.title} {'verified' if verified else 'unverified'}"
            rates = [found.pool_per_s(key, lanes, verified=verified) for lanes in LANES]
            yield f"{title:22}{found.raw_per_s(key):8.0f}" + "".join(f"{rate:11.0f}" for rate in rates)


def _urgency(one: Urgency) -> str:
    return (
        f"revocation beside bulk, {one.key}, {_lanes(one.lanes)}: p50 {one.p50_ms:.1f} ms, "
        f"p99 {one.p99_ms:.1f} ms, at most {one.max_ms:.1f} ms; two batches of {one.batch_ms:.1f} ms and "
        f"{_SLACK_MS:.0f} ms make {_bound_ms(one):.1f} ms; bulk {one.bulk_per_s:.0f}/s meanwhile"
    )


def _lanes(count: int) -> str:
    return "1 lane" if count == 1 else f"{count} lanes"
