"""Which answer a question gets, over a real store."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocsp.answers import Answers, Need, Result
from ocsp.store import ResponseKey, Status, StoredResponse
from pkix.ocsp_request import TRY_LATER, UNAUTHORIZED
from tests.unit.ocsp.stores import DAY, NOW, SHA1, SHA256, TAG, Clock, fill, key, response

GOOD, REVOKED, PENDING, STALE, EXPIRED, SHA1_ONLY = range(1, 7)
BOTH = (GOOD, REVOKED)


def entries() -> list[tuple[ResponseKey, StoredResponse]]:
    found = [
        (key(GOOD), response()),
        (key(REVOKED), response(Status.REVOKED, b"revoked")),
        (key(PENDING), response(Status.REVOCATION_PENDING)),
        (key(STALE), response(age_s=8 * DAY)),
        (key(EXPIRED), response(left_s=0)),
        (key(SHA1_ONLY), response()),
    ]
    return [*found, *((key(serial, "sha256"), response(der=b"sha256")) for serial in BOTH)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def answers(tmp_path: Path, clock: Clock) -> Iterator[Answers]:
    fill(tmp_path / "store", entries())
    made = Answers(tmp_path / "store", max_age_cap_s=3600, clock=clock)
    made.tick()
    yield made
    made.close()


def is_open(answers: Answers) -> bool:
    return answers.open


def ask(answers: Answers, serial: int, hashes: tuple[bytes, bytes] = SHA1) -> tuple[Result, bytes]:
    found = answers.answer(answers.key(b"".join(hashes), bytes((serial,))))
    assert not isinstance(found, Need)
    return found[0], found[1].partition(b"\r\n\r\n")[2]


def test_each_state_has_its_answer(answers: Answers) -> None:
    assert ask(answers, GOOD) == (Result.GOOD, b"good")
    assert ask(answers, REVOKED) == (Result.REVOKED, b"revoked")
    assert ask(answers, GOOD, SHA256) == (Result.GOOD, b"sha256")
    assert ask(answers, PENDING) == (Result.TRY_LATER, TRY_LATER)
    assert answers.stale_refused == 1
    assert ask(answers, STALE) == (Result.TRY_LATER, TRY_LATER)
    assert ask(answers, EXPIRED) == (Result.TRY_LATER, TRY_LATER)
    assert answers.stale_refused == 3
    assert answers.unknown_serials == 0


def test_what_was_never_issued_is_unauthorized_and_counted(answers: Answers) -> None:
    assert ask(answers, 99) == (Result.UNAUTHORIZED, UNAUTHORIZED)
    assert ask(answers, 99, SHA256) == (Result.UNAUTHORIZED, UNAUTHORIZED)
    assert (answers.unknown_serials, answers.unknown_issuers) == (2, 0)


@pytest.mark.parametrize(
    "hashes",
    [(SHA1[0], b"x" * 20), (b"x" * 20, SHA1[1]), (SHA1[1], SHA1[0]), (SHA256[0], SHA1[1])],
    ids=["other key", "other name", "swapped", "mixed"],
)
def test_both_hashes_of_the_issuer_count(answers: Answers, hashes: tuple[bytes, bytes]) -> None:
    assert ask(answers, GOOD, hashes) == (Result.UNAUTHORIZED, UNAUTHORIZED)
    assert (answers.unknown_serials, answers.unknown_issuers) == (0, 1)


def test_known_certificate_under_a_new_hash_needs_the_authority(answers: Answers) -> None:
    assert answers.answer(answers.key(b"".join(SHA256), bytes((SHA1_ONLY,)))) is Need.FORWARD
    assert answers.unknown_serials == 0


def test_time_alone_ends_an_answer(answers: Answers, clock: Clock) -> None:
    before = ask(answers, GOOD)[0]
    clock.now = NOW + 3 * DAY
    answers.finisher.tick()
    assert (before, ask(answers, GOOD)[0]) == (Result.GOOD, Result.TRY_LATER)


def test_without_a_store_nobody_is_called_unknown(tmp_path: Path, clock: Clock) -> None:
    answers = Answers(tmp_path / "store", max_age_cap_s=3600, clock=clock)
    answers.tick()
    assert not is_open(answers)
    assert answers.generation() == -1
    assert ask(answers, GOOD) == (Result.TRY_LATER, TRY_LATER)
    fill(tmp_path / "store", [(key(GOOD), response())], issuer=False)
    answers.tick()
    assert is_open(answers)
    assert ask(answers, GOOD) == (Result.TRY_LATER, TRY_LATER), "its issuer is not registered: being rebuilt"
    answers.close()


def test_store_that_appears_is_found_by_the_next_question(tmp_path: Path, clock: Clock) -> None:
    answers = Answers(tmp_path / "store", max_age_cap_s=3600, clock=clock)
    answers.tick()
    fill(tmp_path / "store", [(key(GOOD), response())])
    assert ask(answers, GOOD) == (Result.GOOD, b"good")
    answers.close()


def test_store_that_was_replaced_is_followed(tmp_path: Path, clock: Clock) -> None:
    directory = tmp_path / "store"
    fill(directory, [(key(GOOD), response(der=b"first"))])
    answers = Answers(directory, max_age_cap_s=3600, clock=clock)
    answers.tick()
    assert ask(answers, GOOD) == (Result.GOOD, b"first")
    shutil.rmtree(directory)
    answers.tick()
    assert not is_open(answers)
    assert ask(answers, GOOD) == (Result.TRY_LATER, TRY_LATER)
    fill(directory, [(key(GOOD), response(der=b"second"))])
    answers.tick()
    assert ask(answers, GOOD) == (Result.GOOD, b"second")
    answers.close()


def test_store_that_breaks_is_let_go(answers: Answers) -> None:
    assert answers._reader is not None
    where = answers.key(b"".join(SHA1), bytes((GOOD,)))
    answers._reader._env.close()
    assert answers.answer(where) == answers.try_later()
    assert not is_open(answers)
    again = answers.answer(where)
    assert not isinstance(again, Need)
    assert again[0] is Result.GOOD, "at once, also for a key that was remembered"


def test_key_of_a_store_that_is_being_rebuilt_is_not_called_unknown(tmp_path: Path, clock: Clock) -> None:
    directory = tmp_path / "store"
    fill(directory, [(key(GOOD), response())])
    answers = Answers(directory, max_age_cap_s=3600, clock=clock)
    answers.tick()
    remembered = answers.key(b"".join(SHA1), bytes((GOOD,)))
    shutil.rmtree(directory)
    fill(directory, [], issuer=False)  # its issuer is registered when its answers are there
    answers.tick()
    assert is_open(answers)
    assert answers.answer(remembered) == answers.try_later()
    assert (answers.unknown_serials, answers.unknown_issuers) == (0, 0)
    answers.close()


def test_key_is_that_of_the_store(answers: Answers) -> None:
    assert answers.key(b"".join(SHA1), b"\x01") == key(1)
    assert key(1).endswith(TAG + b"\x01")
