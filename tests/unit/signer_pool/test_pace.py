"""Batch sizes, deadlines and rates, from what batches took."""

import pytest

from signer_pool.pace import FIRST_SIZE, Pace, capacities

EC, PSS, RSA = ("ec", "ecdsa-with-SHA256"), ("rsa", "rsassa-pss-sha256"), ("rsa", "sha256WithRSAEncryption")


def pace(max_size: int = 256) -> Pace:
    return Pace(target_s=0.025, max_size=max_size, deadline_s=10.0)


def test_nothing_is_known_at_first() -> None:
    assert pace().size(EC) == FIRST_SIZE
    assert pace(max_size=3).size(EC) == 3
    assert pace().deadline_s(EC, 1000) == 10.0
    assert pace().signs_per_s() == {}


@pytest.mark.parametrize(
    ("seconds", "size"), [(0.005, 5), (0.00005, 256), (0.001, 25), (1.0, 1), (0.01, 2), (0.0, 256)]
)
def test_batch_fills_the_target_time(seconds: float, size: int) -> None:
    measured = pace()
    measured.measured(EC, 10, 10 * seconds)
    assert measured.size(EC) == size
    assert measured.size(RSA) == FIRST_SIZE


def test_average_is_a_plain_mean_that_soon_decays_by_a_fifth() -> None:
    measured = pace()
    measured.measured(EC, 1, 0.040)  # the first one is slow: caches, handles, a connection
    measured.measured(EC, 9, 0.090)
    assert measured.signs_per_s()["ec"] == pytest.approx(10 / 0.130)
    measured.measured(EC, 2, 0.040)
    assert measured.signs_per_s()["ec"] == pytest.approx(1 / 0.0144)
    for _ in range(50):
        measured.measured(EC, 2, 0.040)
    assert measured.signs_per_s()["ec"] == pytest.approx(50.0, rel=0.01)
    assert measured.size(EC) == 1


def test_deadline_is_fifty_times_the_usual_but_two_seconds_at_least_and_never_beyond_the_bound() -> None:
    measured = pace()
    measured.measured(EC, 10, 0.1)
    assert [measured.deadline_s(EC, count) for count in (1, 4, 10, 20, 256)] == [2.0, 2.0, 5.0, 10.0, 10.0]
    short = Pace(target_s=0.025, max_size=256, deadline_s=0.5)
    short.measured(EC, 10, 0.1)
    assert short.deadline_s(EC, 1) == 0.5


def test_what_is_forgotten_is_as_new_with_half_the_size() -> None:
    measured = pace()
    measured.measured(EC, 10, 0.01)
    measured.measured(RSA, 10, 0.1)
    size = measured.size(EC)
    measured.forget(EC)
    assert (measured.size(EC), measured.deadline_s(EC, 1)) == (size // 2, 10.0)
    assert (measured.knows(EC), measured.knows(RSA)) == (False, True)
    for _ in range(20):
        measured.forget(EC)
    assert measured.size(EC) == 1
    never = pace()
    never.forget(EC)
    assert never.size(EC) == FIRST_SIZE // 2
    assert measured.signs_per_s() == {"rsa": pytest.approx(100.0)}
    measured.measured(EC, 10, 0.1)
    assert measured.signs_per_s()["ec"] == pytest.approx(100.0)  # of this measurement alone


def test_one_hiccup_does_not_make_a_slow_token() -> None:
    measured = pace()
    measured.measured(EC, 20, 0.02)
    measured.measured(EC, 1, 2.0)
    assert measured.signs_per_s()["ec"] > 400
    for _ in range(30):
        measured.measured(EC, 1, 2.0)
    assert measured.signs_per_s()["ec"] < 1, "but one that stays slow is known for it"


def test_key_is_as_fast_as_its_slowest_algorithm() -> None:
    measured = pace()
    measured.measured(RSA, 10, 0.1)
    measured.measured(PSS, 10, 0.2)
    assert measured.signs_per_s() == {"rsa": pytest.approx(50.0)}
    measured = pace()
    measured.measured(PSS, 10, 0.2)
    measured.measured(RSA, 10, 0.1)
    assert measured.signs_per_s() == {"rsa": pytest.approx(50.0)}


def test_capacities_of_lanes_add_up_by_token_and_key() -> None:
    fast, slow, new = pace(), pace(), pace()
    fast.measured(EC, 10, 0.01)
    fast.measured(RSA, 10, 0.1)
    slow.measured(EC, 10, 0.1)
    both, ec = frozenset({"ec", "rsa"}), frozenset({"ec"})
    found = capacities([("one", both, fast), ("one", both, slow), ("two", ec, slow), ("three", ec, new)])
    assert sorted((one.token, one.key, round(one.signs_per_s)) for one in found) == [
        ("one", "ec", 1100),
        ("one", "rsa", 100),
        ("three", "ec", 0),  # it has the key, and nobody has measured it there
        ("two", "ec", 100),
    ]
    assert capacities([]) == []
