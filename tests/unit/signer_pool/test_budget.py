"""Bulk work gets what is left of the tokens, never more, and nothing when freshness is at risk."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from signer_pool.budget import (
    BURST_S,
    NOW,
    REFRESH,
    Commitment,
    Freshness,
    Outlook,
    Plan,
    SigningBudget,
    utilisation,
)
from signer_pool.budget_metrics import BudgetCollector
from signer_pool.errors import BudgetExceeded, SignerPoolError
from signer_pool.pace import Capacity

FRESH = Freshness(0, None)
EPSILON = 1e-6


class Bench:
    """A budget with the clock and the capacities in the test's hand."""

    def __init__(self, rates: Mapping[tuple[str, str], float], *, max_delay_s: float = 5.0) -> None:
        self.now = 100.0
        self.rates = dict(rates)
        self.budget = SigningBudget(self.capacities, clock=lambda: self.now, reserve=0.2, max_delay_s=max_delay_s)

    def capacities(self) -> list[Capacity]:
        return [Capacity(token=t, key=k, signs_per_s=rate) for (t, k), rate in self.rates.items()]

    def commit(self, share: float, freshness: Freshness = FRESH, key: str = "ocsp") -> None:
        """Commit `share` of 1,000 signatures a second."""
        self.budget.commit([Plan(NOW, [Commitment(REFRESH, key, 1000 * share)])], freshness)

    def refused(self, count: int = 1, key: str = "issuing") -> BudgetExceeded:
        with pytest.raises(BudgetExceeded) as caught:
            self.budget.delay_bulk(key, count)
        return caught.value


def one_token() -> Bench:
    return Bench({("hsm", "issuing"): 1000.0, ("hsm", "ocsp"): 1000.0})


# utilisation and outlooks


def test_shares_of_different_keys_add_up_over_tokens() -> None:
    capacities = [
        Capacity(token="a", key="rsa", signs_per_s=100),
        Capacity(token="b", key="rsa", signs_per_s=300),
        Capacity(token="b", key="ec", signs_per_s=1000),
    ]
    demand = [Commitment("crl", "rsa", 40), Commitment("issuance", "rsa", 40), Commitment("refresh", "ec", 300)]
    assert utilisation(demand, capacities) == pytest.approx(0.2 + 0.3)
    assert utilisation([Commitment("crl", "root", 1)], capacities) == math.inf
    assert utilisation([Commitment("crl", "root", 0)], capacities) == 0
    stuck = Capacity(token="c", key="root", signs_per_s=0)
    assert utilisation([Commitment("crl", "root", 1)], [stuck]) == math.inf
    assert utilisation([], []) == 0


def test_one_token_gone_is_the_worst_one() -> None:
    bench = Bench({("a", "ocsp"): 100.0, ("b", "ocsp"): 300.0})
    bench.budget.commit([Plan("2030", [Commitment(REFRESH, "ocsp", 80)])], FRESH)
    assert bench.budget.outlooks() == [
        Outlook(plan="2030", tokens="all", utilisation=0.2, lost=None, unmeasured=()),
        Outlook(plan="2030", tokens="one_gone", utilisation=0.8, lost="b", unmeasured=()),
    ]
    assert [one.sentence for one in bench.budget.outlooks()] == [
        "2030: with all tokens, 20.0% of the capacity is committed",
        "2030: without token 'b', 80.0% of the capacity is committed",
    ]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_without_the_only_token_nothing_is_left(share: float) -> None:
    bench = one_token()
    bench.commit(share)
    both, one_gone = bench.budget.outlooks()
    assert both.headroom == 1 - share
    assert (one_gone.utilisation, one_gone.headroom, one_gone.lost) == (math.inf, -math.inf, "hsm")
    assert one_gone.sentence == "now: without token 'hsm', not every key that is needed can sign"


def test_a_key_on_one_of_two_tokens_only_cannot_be_spared() -> None:
    bench = Bench({("a", "ocsp"): 100.0, ("b", "ocsp"): 100.0, ("b", "root"): 100.0})
    bench.budget.commit([Plan(NOW, [Commitment("crl", "root", 0.01)])], FRESH)
    _, one_gone = bench.budget.outlooks()
    assert (one_gone.utilisation, one_gone.lost) == (math.inf, "b")


def test_a_key_that_was_measured_on_one_of_two_tokens_is_not_missing_on_the_other() -> None:
    """The root key signs a CRL a month, on one token."""
    bench = Bench({("a", "ocsp"): 100.0, ("b", "ocsp"): 100.0, ("a", "root"): 0.0, ("b", "root"): 100.0})
    work = [Commitment("crl", "root", 0.01), Commitment(REFRESH, "ocsp", 10)]
    bench.budget.commit([Plan(NOW, work)], FRESH)
    _, one_gone = bench.budget.outlooks()
    assert one_gone.utilisation == pytest.approx(0.1, abs=0.001)


def test_what_was_never_measured_is_named_and_not_guessed() -> None:
    bench = Bench({})
    work = [Commitment(REFRESH, "ocsp", 100), Commitment("crl", "root", 1)]
    bench.budget.commit([Plan(NOW, work)], FRESH)
    for one in bench.budget.outlooks():
        assert math.isnan(one.utilisation)
        assert one.unmeasured == ("ocsp", "root")
        assert one.sentence == "now: nothing is measured yet"
    bench.rates = {("hsm", "ocsp"): 1000.0}
    both, _ = bench.budget.outlooks()
    assert (both.utilisation, both.unmeasured) == (0.1, ("root",))


def test_a_key_that_lost_its_last_lane_is_not_unmeasured() -> None:
    bench = one_token()
    bench.commit(0.1)
    bench.rates = {}
    both, one_gone = bench.budget.outlooks()
    assert (both.utilisation, both.unmeasured) == (math.inf, ())
    assert (one_gone.utilisation, one_gone.lost) == (math.inf, None)


# bulk


def test_bulk_starts_at_once_until_the_burst_is_spent_then_at_the_rate_that_is_left() -> None:
    bench = one_token()
    bench.commit(0.3)
    assert bench.budget.delay_bulk("issuing", 1000) == 0
    assert bench.budget.delay_bulk("issuing", 500) == pytest.approx(1.0)  # of each second, half is left
    assert bench.budget.delay_bulk("issuing", 500) == pytest.approx(2.0)
    bench.now += 1.5
    assert bench.budget.delay_bulk("issuing", 500) == pytest.approx(1.5)
    assert bench.budget.delayed_s == pytest.approx(4.5)
    bench.now += 1000
    assert bench.budget.delay_bulk("issuing", 1000) == 0, "an idle bucket is full"
    assert bench.budget.delay_bulk("issuing", 1) > 0, "but holds no more than the burst"


def test_keys_share_the_bucket_and_work_on_several_keys_is_admitted_whole() -> None:
    bench = Bench({("hsm", "issuing"): 100.0, ("hsm", "ocsp"): 1000.0}, max_delay_s=1.0)
    assert bench.budget.delay_bulk_of({"issuing": 50, "ocsp": 500}) == 0
    assert bench.budget.delay_bulk_of({"issuing": 40, "ocsp": 0}) == pytest.approx(0.5)
    with pytest.raises(BudgetExceeded):
        bench.budget.delay_bulk_of({"ocsp": 1, "issuing": 80})
    assert bench.budget.delay_bulk("ocsp", 400) == pytest.approx(1.0), "what was refused has cost nothing"
    assert [bench.budget.admitted(key) for key in ("issuing", "ocsp", "root")] == [90, 900, 0]


def test_before_anything_is_measured_bulk_is_free() -> None:
    bench = Bench({})
    bench.commit(5.0, Freshness(10, 60.0))
    assert bench.budget.delay_bulk("issuing", 10**9) == 0
    assert bench.budget.most_at_once("issuing") is None
    bench.rates = {("hsm", "ocsp"): 10_000.0}
    assert bench.budget.delay_bulk("issuing", 10**9) == 0, "another key tells nothing about this one"


def test_a_lost_token_does_not_make_bulk_free() -> None:
    bench = one_token()
    bench.commit(0.3)
    bench.budget.delay_bulk("issuing", 1000)
    bench.rates = {}
    assert bench.budget.delay_bulk("issuing", 500) == pytest.approx(1.0)


def test_less_capacity_makes_bulk_dearer() -> None:
    bench = Bench({("a", "issuing"): 500.0, ("b", "issuing"): 500.0, ("a", "ocsp"): 1000.0})
    bench.commit(0.3)
    del bench.rates["b", "issuing"]
    assert bench.budget.delay_bulk("issuing", 500) == 0
    assert bench.budget.delay_bulk("issuing", 500) == pytest.approx(2.0)


def test_refuses_what_would_wait_too_long_and_says_when_to_come_back() -> None:
    bench = one_token()
    bench.commit(0.3)
    bench.budget.delay_bulk("issuing", 3000)
    error = bench.refused(1501)
    assert isinstance(error, SignerPoolError)
    assert (error.reason, error.retry_after_s) == ("delay", 3)
    assert error.detail == str(error)
    assert "this would have to wait 7.0 s, the bound is 5 s" in error.detail
    bench.now += error.retry_after_s
    assert bench.budget.delay_bulk("issuing", 1501) <= 5.0
    assert bench.budget.refused == {"freshness": 0, "committed": 0, "delay": 1}


def test_work_too_large_for_any_bucket_is_told_to_be_cut() -> None:
    bench = one_token()
    bench.commit(0.3)
    most = bench.budget.most_at_once("issuing")
    assert most == 3499
    assert "send less at a time" in bench.refused(3501).detail
    assert bench.budget.delay_bulk("issuing", most) <= 5.0


@pytest.mark.parametrize("share", [0.8, 3.0])
def test_refuses_when_commitments_and_reserve_need_everything(share: float) -> None:
    bench = one_token()
    bench.commit(share)
    error = bench.refused()
    assert (error.reason, error.retry_after_s) == ("committed", 15)
    assert "nothing is left" in error.detail
    assert bench.budget.most_at_once("issuing") == 0
    assert bench.budget.delay_bulk("issuing", 0) == 0
    bench.commit(0.1)
    assert bench.budget.delay_bulk("issuing", 1) == 0


def test_a_plan_of_later_years_holds_nothing_back_today() -> None:
    bench = one_token()
    bench.budget.commit([Plan("2040", [Commitment(REFRESH, "ocsp", 10**6)])], FRESH)
    assert bench.budget.delay_bulk("issuing", 1000) == 0
    assert bench.budget.delay_bulk("issuing", 800) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("overdue", "slack_s", "admitted"),
    [(0, None, True), (10, None, True), (1000, 2.1, True), (1000, 1.9, False), (1, 0.0, False), (1, -9.0, False)],
)
def test_refuses_when_signing_what_is_overdue_takes_half_of_the_time_left(
    overdue: int, slack_s: float | None, admitted: bool
) -> None:
    bench = one_token()
    bench.commit(0.1, Freshness(overdue, slack_s))
    if admitted:
        assert bench.budget.delay_bulk("issuing", 1) == 0
        return
    error = bench.refused()
    assert (error.reason, error.retry_after_s) == ("freshness", 15)
    assert f"{overdue} OCSP responses are overdue" in error.detail
    assert "-" not in error.detail
    assert bench.budget.refused["freshness"] == 1


def test_slack_runs_out_while_no_new_figures_come() -> None:
    bench = one_token()
    bench.now += 1000
    bench.commit(0.1, Freshness(40_000, 100.0))
    assert bench.budget.delay_bulk("issuing", 1) == 0
    bench.now += 21
    assert bench.refused().retry_after_s == 40
    bench.commit(0.1, Freshness(90_000, 100.0))
    assert bench.refused().retry_after_s == 60, "callers look again at least once a minute"
    bench.commit(0.1)
    assert bench.budget.delay_bulk("issuing", 1) == 0


def test_only_the_keys_that_sign_responses_decide_whether_they_are_fresh() -> None:
    bench = Bench({("hsm", "issuing"): 1000.0, ("hsm", "ocsp"): 1000.0, ("hsm", "root"): 1.0})
    work = [Commitment(REFRESH, "ocsp", 1), Commitment("crl", "root", 0.001)]
    bench.budget.commit([Plan(NOW, work)], Freshness(1000, 100.0))
    assert bench.budget.delay_bulk("issuing", 1) == 0
    bench.budget.commit([Plan(NOW, [*work, Commitment(REFRESH, "root", 1)])], Freshness(1000, 100.0))
    assert bench.refused().reason == "freshness", "the slowest of them decides"


def test_the_old_plan_holds_until_the_new_one_comes() -> None:
    bench = one_token()
    bench.commit(0.3)
    bench.budget.delay_bulk("issuing", 1500)
    bench.now += 0.5
    bench.commit(0.7)
    assert bench.budget.delay_bulk("issuing", 10) == pytest.approx((0.25 + 0.01) / 0.1)


def test_a_broken_limit_refuses_bulk_though_nothing_is_measured() -> None:
    bench = Bench({})
    bench.commit(0.1, Freshness(1, -1.0))
    assert bench.refused().reason == "freshness"


@pytest.mark.parametrize(("reserve", "max_delay_s"), [(-0.1, 1), (1.0, 1), (0.2, -1)])
def test_nonsense_is_refused_when_it_is_built(reserve: float, max_delay_s: float) -> None:
    with pytest.raises(ValueError, match="reserve"):
        SigningBudget(list, clock=lambda: 0.0, reserve=reserve, max_delay_s=max_delay_s)


def test_negative_counts_do_not_fill_the_bucket() -> None:
    with pytest.raises(ValueError, match="below 0"):
        one_token().budget.delay_bulk("issuing", -1)


# the bucket, whatever comes

CALLS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4000)), max_size=30)
SHARES = st.floats(0, 0.75)


def play(
    bench: Bench, calls: Sequence[tuple[float, int]], before: Callable[[], None]
) -> list[tuple[float, float]]:
    """Return (start, HSM-seconds) of what was admitted."""
    admitted = []
    for pause_s, count in calls:
        bench.now += pause_s
        before()
        try:
            delay_s = bench.budget.delay_bulk("issuing", count)
        except BudgetExceeded:
            continue
        assert 0 <= delay_s <= 5.0
        admitted.append((bench.now + delay_s, count / 1000))
    return admitted


@given(CALLS, SHARES)
def test_over_any_window_bulk_gets_its_rate_and_a_burst(calls: list[tuple[float, int]], share: float) -> None:
    bench = one_token()
    bench.commit(share)
    admitted = play(bench, calls, lambda: None)
    starts = [start for start, _ in admitted]
    assert all(later >= earlier - EPSILON for earlier, later in itertools.pairwise(starts)), (
        "first come, first served"
    )
    for first in range(len(admitted)):
        spent = 0.0
        for start, cost_s in admitted[first:]:
            spent += cost_s
            # Work that is larger than the burst gathers all of its cost before it starts.
            burst_s = max(BURST_S, admitted[first][1])
            assert spent <= burst_s + (0.8 - share) * (start - starts[first]) + EPSILON


@given(CALLS, st.lists(st.floats(0, 1.5), min_size=30, max_size=30))
def test_changing_plans_never_let_more_through_than_they_left(
    calls: list[tuple[float, int]], shares: list[float]
) -> None:
    bench = one_token()
    plans = iter(shares)
    left_s, at, refill = BURST_S, bench.now, 0.8

    def commit_next() -> None:
        nonlocal left_s, at, refill
        left_s += refill * (bench.now - at)
        at, share = bench.now, next(plans)
        refill = max(0.0, 0.8 - share)
        bench.commit(share)

    admitted = play(bench, calls, commit_next)
    assert sum(cost_s for _, cost_s in admitted) <= left_s + 5.0 * 0.8 + EPSILON


@given(CALLS, SHARES, st.integers(1, 4000), st.integers(0, 2000))
def test_more_work_never_waits_less(calls: list[tuple[float, int]], share: float, count: int, more: int) -> None:
    delays = []
    for size in (count, count + more):
        bench = one_token()
        bench.commit(share)
        play(bench, calls, lambda: None)
        try:
            delays.append(bench.budget.delay_bulk("issuing", size))
        except BudgetExceeded:
            delays.append(math.inf)
    assert delays[0] <= delays[1]


@given(SHARES, st.floats(0.1, 50_000))
def test_what_most_at_once_promises_is_admitted(share: float, rate: float) -> None:
    bench = Bench({("hsm", "issuing"): rate, ("hsm", "ocsp"): 1000.0})
    bench.commit(share)
    most = bench.budget.most_at_once("issuing")
    assert most is not None
    bench.budget.delay_bulk("issuing", most)
    bench.now += 1000
    assert "send less" in bench.refused(most + 2).detail


# metrics


def test_everything_is_exported_under_its_name() -> None:
    bench = one_token()
    registry = CollectorRegistry()
    BudgetCollector(bench.budget, registry)
    value = registry.get_sample_value
    now = Plan(NOW, [Commitment("issuance", "ocsp", 100), Commitment("issuance", "issuing", 100)])
    bench.budget.commit([now, Plan("2031", [Commitment("crl", "issuing", 5000)]), Plan("2032", ())], FRESH)
    bench.budget.delay_bulk("issuing", 1000)
    bench.budget.delay_bulk("issuing", 600)
    bench.refused(3000)
    prefix = "certmill_signer"
    assert value(f"{prefix}_capacity_signs_per_second", {"token": "hsm", "key": "ocsp"}) == 1000
    assert value(f"{prefix}_committed_signs_per_second", {"plan": "now", "work": "issuance"}) == 200
    headroom = f"{prefix}_budget_headroom_ratio"
    assert value(headroom, {"plan": "now", "tokens": "all"}) == pytest.approx(0.8)
    assert value(headroom, {"plan": "now", "tokens": "one_gone"}) == -1
    assert value(headroom, {"plan": "2031", "tokens": "all"}) == -1
    assert value(headroom, {"plan": "2032", "tokens": "all"}) == 1
    assert value(f"{prefix}_bulk_delayed_seconds_total") == pytest.approx(1.0)
    assert value(f"{prefix}_bulk_refused_total", {"reason": "delay"}) == 1
    assert value(f"{prefix}_bulk_refused_total", {"reason": "freshness"}) == 0
    bench.budget.commit([now], FRESH)
    assert value(headroom, {"plan": "2031", "tokens": "all"}) is None, "a plan that ends leaves no trace"
    with pytest.raises(ValueError, match="Duplicated"):
        BudgetCollector(bench.budget, registry)


def test_headroom_is_not_a_number_before_anything_is_measured() -> None:
    bench = Bench({})
    registry = CollectorRegistry()
    BudgetCollector(bench.budget, registry)
    bench.commit(0.1)
    assert b'budget_headroom_ratio{plan="now",tokens="all"} NaN' in generate_latest(registry)


def test_what_was_paid_and_not_queued_is_given_back() -> None:
    bench = one_token()
    bench.commit(0.3)
    assert bench.budget.delay_bulk("issuing", 1000) == 0
    bench.budget.give_back("issuing", 1000)
    assert bench.budget.admitted("issuing") == 0
    assert bench.budget.delay_bulk("issuing", 1000) == 0
    bench.budget.give_back("never measured", 5)
    for _ in range(5):
        bench.budget.give_back("issuing", 1000)
    assert bench.budget.delay_bulk("issuing", 1000) == 0
    assert bench.budget.delay_bulk("issuing", 1) > 0, "no more than the burst"
