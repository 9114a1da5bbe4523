from collections import Counter

from server.issuance.serial import RANDOM_BITS, new_serial


def test_serials_are_positive_unique_and_have_no_fixed_bits() -> None:
    drawn = [new_serial() for _ in range(100_000)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 < serial < 1 << 159 for serial in drawn)
    ones = Counter(bit for serial in drawn for bit in range(RANDOM_BITS) if serial >> bit & 1)
    assert all(0.48 < ones[bit] / len(drawn) < 0.52 for bit in range(RANDOM_BITS))


def test_a_draw_that_looks_like_a_counter_is_drawn_again() -> None:
    draws = iter([5, (1 << 64) - 1, 1 << 64])
    assert new_serial(lambda _bits: next(draws)) == 1 << 64
