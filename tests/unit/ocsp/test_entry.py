"""From a stored entry to the bytes of an HTTP answer (RFC 9919 §6, RFC 9111)."""

import email.utils

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsp.entry import Finisher, etag, http_date, is_fresh, pack, unpack
from ocsp.store import Status, StoredResponse
from tests.unit.ocsp.stores import DAY, NOW, Clock, response

HOUR = 3600


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def finisher(clock: Clock) -> Finisher:
    finisher = Finisher(max_age_cap_s=HOUR, clock=clock)
    finisher.tick()
    return finisher


def headers(answer: bytes) -> dict[str, str]:
    head, _, _ = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    found = dict(line.split(": ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def seconds(date: str) -> int:
    assert date.endswith(" GMT")
    return int(email.utils.parsedate_to_datetime(date).timestamp())


def finish(finisher: Finisher, stored: StoredResponse) -> bytes:
    finished = finisher.finish(pack(stored))
    assert finished is not None
    assert finished[0] == stored.status
    return finished[1]


@given(st.sampled_from(Status), st.integers(0, 2**40), st.integers(0, 2**40), st.binary(max_size=3000))
def test_what_is_packed_is_unpacked(status: Status, this_update: int, next_update: int, der: bytes) -> None:
    stored = StoredResponse(
        status=status, this_update=this_update % 2**33, next_update=next_update % 2**33, der=der
    )
    assert unpack(pack(stored)) == stored


def test_answer_has_every_header_that_caches_need(finisher: Finisher) -> None:
    answer = finish(finisher, response(der=b"DER", age_s=100))
    assert answer.endswith(b"\r\n\r\nDER")
    found = headers(answer)
    assert found == {
        "Content-Type": "application/ocsp-response",
        "Content-Length": "3",
        "ETag": etag(b"DER").decode(),
        "Last-Modified": http_date(NOW - 100).decode(),
        "Date": "Mon, 23 Nov 2026 12:00:00 GMT",
        "Cache-Control": "max-age=3600, public, no-transform, must-revalidate",
        "Expires": "Mon, 23 Nov 2026 13:00:00 GMT",
    }


@pytest.mark.parametrize("left_s", [1, 2, 60, HOUR - 1, HOUR, HOUR + 1, HOUR + 2])
def test_no_cache_keeps_an_answer_until_its_next_update(finisher: Finisher, left_s: int) -> None:
    found = headers(finish(finisher, response(left_s=left_s)))
    max_age = int(found["Cache-Control"].partition(",")[0].removeprefix("max-age="))
    assert max_age == min(HOUR, left_s - 1)
    assert seconds(found["Expires"]) == NOW + max_age
    assert finisher.cache_headers(NOW + left_s) == (max_age, NOW + max_age)


@pytest.mark.parametrize(
    ("stored", "served"),
    [
        (response(left_s=1), True),
        (response(left_s=0), False),
        (response(left_s=-1), False),
        (response(age_s=7 * DAY), True),
        (response(age_s=7 * DAY + 1), False),
        (response(Status.REVOKED, left_s=0), False),
    ],
)
def test_nothing_is_served_past_its_next_update_or_its_seventh_day(
    finisher: Finisher, stored: StoredResponse, *, served: bool
) -> None:
    assert (finisher.finish(pack(stored)) is not None) == served
    assert is_fresh(stored, NOW) == served


def test_pending_revocation_is_not_served_however_fresh(finisher: Finisher) -> None:
    assert finisher.finish(pack(response(Status.REVOCATION_PENDING))) is None


def test_dates_move_with_the_clock_and_not_without(finisher: Finisher, clock: Clock) -> None:
    stored = response(left_s=HOUR + 3)
    first = finish(finisher, stored)
    clock.now += 0.9
    assert finisher.tick() == NOW
    assert finish(finisher, stored) == first
    clock.now += 0.1
    assert finisher.tick() == NOW + 1
    assert seconds(headers(finish(finisher, stored))["Date"]) == NOW + 1
    assert seconds(headers(finisher.error(b"12345"))["Date"]) == NOW + 1
    clock.now -= 60  # the clock was set back
    finisher.tick()
    assert seconds(headers(finish(finisher, stored))["Date"]) == NOW - 59


def test_errors_are_kept_by_nobody(finisher: Finisher) -> None:
    answer = finisher.error(b"12345")
    assert answer.endswith(b"\r\n\r\n12345")
    found = headers(answer)
    assert found["Cache-Control"] == "no-store"
    assert found["Content-Length"] == "5"
    assert set(found) == {"Content-Type", "Content-Length", "Cache-Control", "Date"}
