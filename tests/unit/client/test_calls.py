"""One call on bad days: what is repeated, what is not, and that the same request never becomes another."""

import io
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from client.api import CertmillClient
from client.errors import CertmillProblem, CertmillProtocolError, CertmillUnreachable, CertmillUntrusted
from tests.support.fake_api import LOST, FakeApi, Heard, Say
from tests.unit.client.conftest import Patient

CERTIFICATE = {
    "serial": "5f1c", "status": "good", "profile": "tls-server@1", "subject": "CN=a.example", "dns_names": ["a.example"],
    "not_before": "2026-11-23T11:00:00Z", "not_after": "2027-06-11T10:59:59Z", "certificate": "LEAF\n", "chain": ["CA\n"],
    "added_by_a_later_certmill": 1,
}  # fmt: skip
BATCH = {
    "id": "b1", "profile": "tls-server@1", "state": "queued", "dry_run": False, "rows": 2, "issued": 0, "failed": 0,
    "checked": 0, "pending": 2, "created_at": "2026-11-23T11:00:00Z",
}  # fmt: skip
USAGE = {
    "client": "demo", "year": 2026, "used": 3, "remaining": None, "resets_at": "2027-01-01T00:00:00Z", "live": 2,
    "by_profile": {}, "by_month": {}, "limits": {"names": ["*"]}, "expiring": {"days_30": 1}, "forecast": {"year_end": 9},
}  # fmt: skip
PROBLEM = {
    "type": "/docs#profile-violation", "title": "The profile does not allow this request", "status": 422,
    "detail": "CN is missing", "field": "subject", "remedy": "give a CN", "instance": "urn:request:7",
}  # fmt: skip


def said(content: object, status: int = 200, **headers: str) -> Say:
    return Say(
        status, json.dumps(content).encode(), {name.replace("_", "-"): value for name, value in headers.items()}
    )


BUSY = said(PROBLEM, 503, Retry_After="3")


def test_an_answer_that_was_lost_is_asked_for_with_the_same_key(api: FakeApi, patient: Patient) -> None:
    cut = Say(201, json.dumps(CERTIFICATE).encode(), cut=True)
    api.says(BUSY, LOST, cut, said(PROBLEM, 429, Retry_After="5"), Say(502, b"<html>"), said(CERTIFICATE, 201))
    issued = patient.issue("CSR", "tls-server", subject={"CN": "a.example"}, names={"dns": ["a.example"]})
    assert issued.serial == "5f1c"
    assert issued.pem == "LEAF\nCA\n"
    assert len({(one.headers["idempotency-key"], one.body) for one in api.heard}) == 1
    assert len(api.heard) == 6
    assert patient.pauses[0] == 3
    assert patient.pauses[3] == 5
    assert all(0 < pause <= 4 for pause in patient.pauses[1:3])
    assert json.loads(api.heard[0].body) == {
        "profile": "tls-server", "csr": "CSR", "subject": {"CN": "a.example"}, "names": {"dns": ["a.example"]}
    }  # fmt: skip


@pytest.mark.parametrize("status", [400, 403, 404, 408, 409, 422, 500, 302])
def test_a_refusal_is_raised_at_once_with_all_it_says(api: FakeApi, patient: Patient, status: int) -> None:
    api.says(said(PROBLEM, status))
    with pytest.raises(CertmillProblem, match="subject: CN is missing") as caught:
        patient.issue("CSR", "tls-server", idempotency_key="mine")
    problem = caught.value
    assert (problem.status, problem.temporary, problem.repeated) == (status, False, False)
    assert (problem.type, problem.title) == (PROBLEM["type"], PROBLEM["title"])
    assert (problem.detail, problem.field) == (PROBLEM["detail"], PROBLEM["field"])
    assert (problem.remedy, problem.instance) == (PROBLEM["remedy"], PROBLEM["instance"])
    assert problem.idempotency_key == api.heard[0].headers["idempotency-key"] == "mine"
    assert patient.pauses == []


def test_a_refusal_after_a_lost_answer_says_that_it_was_not_the_first_attempt(
    api: FakeApi, patient: Patient
) -> None:
    api.says(LOST, said(PROBLEM, 403))
    with pytest.raises(CertmillProblem) as caught:
        patient.issue("CSR", "tls-server")
    assert caught.value.repeated


def test_a_limit_that_resets_after_the_deadline_is_told_at_once(api: FakeApi, patient: Patient) -> None:
    reset = format_datetime(datetime.now(UTC) + timedelta(days=30), usegmt=True)
    api.says(said(PROBLEM, 429, Retry_After=reset))
    with pytest.raises(CertmillProblem) as caught:
        patient.issue("CSR", "tls-server")
    assert caught.value.temporary
    assert caught.value.retry_after_s == pytest.approx(30 * 86400, abs=60)
    assert patient.pauses == []


def test_a_gateway_that_knows_no_problem_details_is_a_problem_all_the_same(api: FakeApi, patient: Patient) -> None:
    api.says(Say(403, b"\xff<html>no</html>", {"Retry-After": "soon"}))
    with pytest.raises(CertmillProblem, match="HTTP status 403") as caught:
        patient.usage()
    assert (caught.value.type, caught.value.remedy, caught.value.retry_after_s) == ("about:blank", None, None)


def test_nobody_there_is_told_after_the_deadline(api: FakeApi) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told: list[float] = []
    url = f"https://127.0.0.1:{port}"
    began = time.monotonic()
    with (
        CertmillClient(
            url,
            api.certificate,
            api.key,
            api.certificate,
            deadline_s=0.8,
            tell=lambda _error, pause_s: told.append(pause_s),
        ) as certmill,
        pytest.raises(CertmillUnreachable) as caught,
    ):
        certmill.issue("CSR", "tls-server", idempotency_key="mine")
    assert caught.value.idempotency_key == "mine"
    assert told
    assert time.monotonic() - began < 5


def silent(_heard: Heard) -> Say:
    time.sleep(0.6)
    return LOST


def test_an_attempt_that_stays_silent_is_given_up(api: FakeApi) -> None:
    with Patient(api, timeout_s=0.3) as certmill:
        api.says(silent, said(CERTIFICATE))
        assert certmill.read("5f1c").serial == "5f1c"
        assert len(api.heard) == 2


def test_a_server_of_another_root_is_not_trusted_and_not_tried_again(api: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = FakeApi(tmp_path / "other")
    pauses: list[float] = []
    with CertmillClient(api.url, api.certificate, api.key, other.certificate) as certmill:
        certmill.transport.sleep = pauses.append
        with pytest.raises(CertmillUntrusted, match="is the root that of this CA"):
            certmill.usage()
    assert pauses == []
    assert api.heard == []


def test_files_and_urls_that_cannot_be_used_are_named(api: FakeApi, tmp_path: Path) -> None:
    with pytest.raises(CertmillUntrusted, match="nowhere"):
        CertmillClient(api.url, api.certificate, api.key, tmp_path / "nowhere")
    with pytest.raises(CertmillUntrusted, match="nowhere"):
        CertmillClient(api.url, api.certificate, tmp_path / "nowhere", api.certificate)
    with pytest.raises(CertmillUntrusted, match="nowhere: cannot be used: No such file"):
        CertmillClient(api.url, tmp_path / "nowhere", api.key, api.certificate)
    with pytest.raises(CertmillUntrusted, match="holds no certificate, or no private key"):
        CertmillClient(api.url, api.certificate, api.certificate, api.certificate)
    (tmp_path / "other").mkdir()
    with pytest.raises(CertmillUntrusted, match="the key does not belong to the certificate"):
        CertmillClient(api.url, api.certificate, FakeApi(tmp_path / "other").key, api.certificate)
    with pytest.raises(CertmillUntrusted, match="holds no certificate in PEM"):
        CertmillClient(api.url, api.certificate, api.key, api.key)
    with pytest.raises(ValueError, match="for example https"):
        CertmillClient("http://pki", api.certificate, api.key, api.certificate)


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b'{"serial": 1}'])
def test_an_answer_of_something_else_is_no_certificate(api: FakeApi, patient: Patient, body: bytes) -> None:
    api.says(Say(200, body))
    with pytest.raises(CertmillProtocolError):
        patient.read("5f1c")


def test_a_search_goes_through_all_pages(api: FakeApi, patient: Patient) -> None:
    api.says(said({"certificates": [CERTIFICATE], "next_cursor": "x="}), said({"certificates": [CERTIFICATE] * 2}))
    assert len(list(patient.search(status="good", dns_name="a b"))) == 3
    assert [one.path for one in api.heard] == [
        "/v1/certificates?status=good&dns_name=a+b",
        "/v1/certificates?status=good&dns_name=a+b&cursor=x%3D",
    ]


def test_calls_are_written_as_the_api_wants_them(api: FakeApi, patient: Patient) -> None:
    revoked = {"serial": "5f1c", "revoked_at": "2026-11-23T12:00:00Z", "reason": "superseded", "ocsp": "revoked"}
    api.says(said(revoked), said(CERTIFICATE, 201), said(BATCH))
    assert patient.revoke("5f1c", "superseded").ocsp == "revoked"
    assert patient.renew("5f1c", b"\x30\x00", idempotency_key="k").serial == "5f1c"
    assert not patient.batch("../x").ended
    window = {"suggestedWindow": {"start": "2027-04-01T00:00:00Z", "end": "2027-04-03T00:00:00Z"}}
    api.says(said(window), said(USAGE))
    assert patient.renewal_info("5f1c").suggested_window.start == datetime(2027, 4, 1, tzinfo=UTC)
    assert patient.usage().remaining is None
    assert [(one.method, one.path) for one in api.heard] == [
        ("POST", "/v1/certificates/5f1c/revocation"),
        ("POST", "/v1/certificates/5f1c/renewal"),
        ("GET", "/v1/batches/..%2Fx"),
        ("GET", "/v1/certificates/5f1c/renewal-info"),
        ("GET", "/v1/usage"),
    ]
    assert api.heard[1].headers["idempotency-key"] == "k"
    csr = json.loads(api.heard[1].body)["csr"]
    assert csr == "-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"


def test_a_batch_is_sent_again_from_its_start(api: FakeApi, patient: Patient) -> None:
    api.says(BUSY, LOST, said(BATCH, 202))
    rows = io.BytesIO(b"skipped" + b"x" * 300_000)
    rows.seek(7)
    assert patient.submit_batch(rows, "csv", "tls-server", dry_run=True).id == "b1"
    assert {(one.path, one.headers["content-type"], one.body) for one in api.heard} == {
        ("/v1/batches?profile=tls-server&dry_run=true", "text/csv", b"x" * 300_000)
    }
    assert len({one.headers["idempotency-key"] for one in api.heard}) == 1


def test_an_encrypted_key_is_refused_instead_of_asking_for_a_password(api: FakeApi, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as ser

    key = ser.load_pem_private_key(api.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.BestAvailableEncryption(b"x"))
    )
    with pytest.raises(CertmillUntrusted, match=r"locked\.key"):
        CertmillClient(api.url, api.certificate, locked, api.certificate)
