"""Batches: followed through broken streams, fetched whole or not at all."""

import json
from pathlib import Path

import pytest

from client.errors import CertmillProblem, CertmillProtocolError, CertmillUnreachable
from client.events import event_data
from tests.support.fake_api import LOST, FakeApi, Say
from tests.unit.client.conftest import Patient
from tests.unit.client.test_calls import BATCH, PROBLEM, said

STREAM = b": hello\n\nevent: progress\ndata: one\ndata:two\n\nid: 1\r\ndata: three\r\n\r\ndata: never ended\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(event_data(pieces)) == [b"one\ntwo", b"three"]


def test_an_endless_event_is_refused() -> None:
    with pytest.raises(ValueError, match="megabyte"):
        list(event_data(b"x" * 2**16 for _ in range(20)))


def state(name: str, issued: int) -> dict[str, object]:
    return BATCH | {"state": name, "issued": issued, "pending": 2 - issued}


def stream(*states: dict[str, object], cut: bool = False) -> Say:
    body = "".join(f"event: progress\ndata: {json.dumps(one)}\n\n" for one in states).encode()
    return Say(200, body, {"Content-Type": "text/event-stream; charset=utf-8"}, chunked=True, cut=cut)


def followed(patient: Patient) -> list[tuple[str, int]]:
    return [(one.state, one.issued) for one in patient.watch("b1", poll_s=7)]


def paths(api: FakeApi) -> list[str]:
    return [one.path.removeprefix("/v1/batches/b1") for one in api.heard]


def test_a_batch_is_followed_through_a_stream_that_breaks_off(api: FakeApi, patient: Patient) -> None:
    queued, half, done = state("queued", 0), state("running", 1), state("done", 2)
    api.says(said(queued), stream(queued, half, cut=True), said(half), stream(half, done))
    assert followed(patient) == [("queued", 0), ("running", 1), ("done", 2)]
    assert paths(api) == ["", "/events", "", "/events"]


@pytest.mark.parametrize(
    "refusal",
    [said(PROBLEM, 406), Say(200, b"{}"), Say(200, b"data: x\n\n", {"Content-Type": "text/event-stream"})],
)
def test_where_there_are_no_events_it_is_asked_again_and_again(
    api: FakeApi, patient: Patient, refusal: Say
) -> None:
    running, done = state("running", 1), state("done", 2)
    api.says(said(running), refusal, said(running), said(PROBLEM, 503), said(done))
    assert followed(patient) == [("running", 1), ("done", 2)]
    assert paths(api) == ["", "/events", "", "", ""]
    assert patient.pauses[0] == 7


def test_events_that_are_not_to_be_had_now_are_asked_for_later(api: FakeApi, patient: Patient) -> None:
    running, done = state("running", 1), state("done", 2)
    api.says(said(running), said(PROBLEM, 503, Retry_After="1"), said(running), LOST, said(running), stream(done))
    assert followed(patient) == [("running", 1), ("done", 2)]
    assert paths(api) == ["", "/events", "", "/events", "", "/events"]


def test_a_batch_that_is_not_there_is_told(api: FakeApi, patient: Patient) -> None:
    api.says(said(PROBLEM, 404))
    with pytest.raises(CertmillProblem):
        followed(patient)


def test_batches_are_listed_and_steered(api: FakeApi, patient: Patient) -> None:
    api.says(said({"batches": [BATCH], "next_cursor": "2"}), said({"batches": [BATCH]}), said(state("paused", 1)))
    assert len(list(patient.batches())) == 2
    assert patient.steer_batch("b1", "pause").state == "paused"
    assert [(one.method, one.path) for one in api.heard][1:] == [
        ("GET", "/v1/batches?cursor=2"),
        ("POST", "/v1/batches/b1/pause"),
    ]


@pytest.mark.parametrize("chunked", [True, False])
def test_results_that_break_off_are_fetched_again(
    api: FakeApi, patient: Patient, tmp_path: Path, chunked: bool
) -> None:
    out = tmp_path / "out" / "results.zip"
    out.parent.mkdir()
    content = b"z" * 200_000
    api.says(Say(200, content[:-9], cut=True, chunked=chunked), Say(200, content, chunked=chunked))
    patient.results("b1", "zip", out)
    assert out.read_bytes() == content
    assert out.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in out.parent.iterdir()] == ["results.zip"]
    assert paths(api)[0] == "/results?format=zip"


def test_results_that_never_come_whole_leave_what_was_there(
    api: FakeApi, patient: Patient, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "results.csv"
    out.parent.mkdir()
    out.write_text("of yesterday")
    api.says(*[Say(200, b"half", cut=True)] * 3)
    with pytest.raises(CertmillUnreachable):
        patient.results("b1", "csv", out)
    api.says(said(PROBLEM, 409))
    with pytest.raises(CertmillProblem):
        patient.results("b1", "csv", out)
    assert out.read_text() == "of yesterday"
    assert [path.name for path in out.parent.iterdir()] == ["results.csv"]


def test_another_servers_batch_is_no_batch(api: FakeApi, patient: Patient) -> None:
    api.says(Say(200, b"[]"))
    with pytest.raises(CertmillProtocolError):
        patient.batch("b1")
