"""The plan that load tests size for: certificates a year, and the bureaux whose lists come in bursts."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
WORKING_SECONDS_A_YEAR = 250 * 8 * 3600
SHARE_OF_FIRMS = 0.7
"""Of the firms that hold a licence, those that are expected to take a certificate."""
BURST_S = 3600
"""A bureau that sends its whole list wants it done within the hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bureau:
    """An office that issues licences; `share` of all licences."""

    ministry: str
    name: str
    licences: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one year asks of the CA. Rates are certificates per second.

    `average_per_s` spreads the year over working hours; `peak_per_s` is the largest bureau's list within an
    hour, on top of the average.
    """

    year: int
    certificates: int
    average_per_s: float
    peak_per_s: float


def read_bureaux(path: Path = DATA / "licences.csv") -> list[Bureau]:
    """Read the bureaux; their shares add up to 1."""
    rows = _rows(path)
    total = sum(int(row["total"]) for row in rows)
    return [
        Bureau(
            ministry=row["ministry"],
            name=row["bureau"],
            licences=int(row["total"]),
            share=int(row["total"]) / total,
        )
        for row in rows
    ]


def demand(year: int, bureaux: Sequence[Bureau], path: Path = DATA / "plan.csv") -> Demand:
    """Return what a year asks; raises ValueError that names the planned years."""
    plan = {int(row["year"]): int(row["certificates"]) for row in _rows(path)}
    if year not in plan:
        raise ValueError(f"{year} is not planned; planned are {', '.join(map(str, sorted(plan)))}")
    average = plan[year] / WORKING_SECONDS_A_YEAR
    burst = SHARE_OF_FIRMS * max(bureau.licences for bureau in bureaux) / BURST_S
    return Demand(year=year, certificates=plan[year], average_per_s=average, peak_per_s=average + burst)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))
