"""The plan behind the load test."""

from pathlib import Path

import pytest

from loadtests.plan import WORKING_SECONDS_A_YEAR, demand, read_bureaux


def test_shares_are_those_of_the_licences() -> None:
    bureaux = read_bureaux()
    assert sum(bureau.share for bureau in bureaux) == pytest.approx(1)
    first, second = bureaux[:2]
    assert first.share / second.share == pytest.approx(first.licences / second.licences)


def test_demand_grows_with_the_plan_and_peaks_with_the_largest_list(tmp_path: Path) -> None:
    (tmp_path / "plan.csv").write_text("year,certificates\n2027,7200\n")
    (tmp_path / "licences.csv").write_text("\ufeffministry,bureau,total,yearly\nA,a,3600,1\nB,b,10,1\n")
    asked = demand(2027, read_bureaux(tmp_path / "licences.csv"), tmp_path / "plan.csv")
    assert asked.average_per_s == pytest.approx(7200 / WORKING_SECONDS_A_YEAR)
    assert asked.peak_per_s - asked.average_per_s == pytest.approx(0.7)


def test_every_year_of_the_plan_is_known_and_others_are_told() -> None:
    bureaux = read_bureaux()
    assert demand(2028, bureaux).certificates > demand(2024, bureaux).certificates
    with pytest.raises(ValueError, match="2031 is not planned; planned are 2024, 2025"):
        demand(2031, bureaux)
