"""The API's contract over real TLS: errors, retries, filters, documentation, access."""

import secrets
import socket
import ssl
import threading
import uuid
from http.client import HTTPSConnection
from urllib.parse import quote

import pytest

from pkix.csr import bounds_in_characters
from pkix.names import serial_hex
from tests.support.ca import make_csr
from tests.support.certmill import Reply, RunningCertmill


def test_without_a_client_certificate_there_is_no_connection(running: RunningCertmill) -> None:
    connection = HTTPSConnection("127.0.0.1", running.api_port, context=running.tls(client=False), timeout=10)
    connection.request("GET", "/docs")  # under TLS 1.3 the refusal arrives after our first bytes
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connection.getresponse()
    connection.close()


@pytest.mark.parametrize(
    ("body", "status", "slug", "field"),
    [
        ({"profile": "tls-server", "csr": "nonsense"}, 400, "malformed-csr", "csr"),
        ({"profile": "nothing", "csr": "x"}, 400, "invalid-request", "profile"),
        ({"profile": "ocsp-responder", "csr": "x"}, 400, "invalid-request", "profile"),
        ({"profile": "tls-server"}, 400, "invalid-request", None),
        ({"profile": "tls-client", "csr": "SAN"}, 422, "profile-violation", "csr"),
    ],
)
def test_problems_name_the_field_and_the_remedy(
    running: RunningCertmill, body: dict[str, object], status: int, slug: str, field: str | None
) -> None:
    if body.get("csr") == "SAN":
        from cryptography import x509

        body = {**body, "csr": make_csr("a.gov", names=(x509.DNSName("a.gov"),)).decode()}
    reply = running.api("POST", "/v1/certificates", body)
    assert reply.status == status
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert reply.json["type"] == f"/docs#{slug}"
    assert reply.json.get("field") == field
    assert reply.json["remedy"]
    assert reply.headers["x-request-id"] in reply.json["instance"]


def test_paths_methods_types_and_sizes_that_are_not_ours(running: RunningCertmill) -> None:
    assert running.api("GET", "/v2").status == 404
    wrong = running.api("DELETE", "/v1/certificates")
    assert (wrong.status, set(wrong.headers["allow"].split(","))) == (405, {"GET", "HEAD", "POST"})
    assert running.api("POST", "/v1/certificates", b"x", {"Content-Type": "text/plain"}).status == 415
    assert (
        running.api("POST", "/v1/certificates", b"x" * 300_000, {"Content-Type": "application/pkcs10"}).status
        == 413
    )


POST = b"POST /v1/certificates?profile=tls-server HTTP/1.1\r\nHost: a\r\nContent-Type: application/pkcs10\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabczz\r\n", b"400"),
        (POST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", b"400"),
        (POST.replace(b"HTTP/1.1", b"HTTP/9.x"), b"400"),
        (b"\0\r\n\r\n", b"400"),
        (POST + b"Content-Length: 1000\r\n\r\nabc", b""),
    ],
    ids=["chunk", "gzip", "version", "not HTTP", "hang up"],
)
def test_broken_http_is_the_callers_fault(running: RunningCertmill, sent: bytes, status: bytes) -> None:
    before = len(running.log.read_text())
    plain = socket.create_connection(("127.0.0.1", running.api_port), timeout=10)
    with running.tls().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.sendall(sent)
        if status:
            assert connection.recv(12).split(b" ")[1] == status
    assert running.api("GET", "/v1/certificates?limit=1").status == 200
    logged = running.log.read_text()[before:]
    assert "Traceback" not in logged
    assert '"level": "error"' not in logged


def test_body_that_drips_is_ended_by_its_deadline(running: RunningCertmill) -> None:
    plain = socket.create_connection(("127.0.0.1", running.api_port), timeout=10)
    with running.tls().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\nabc")
        assert connection.recv(12).split(b" ")[1] == b"408"


def test_a_retry_with_the_same_key_gets_the_same_certificate(running: RunningCertmill) -> None:
    key, csr = str(uuid.uuid4()), make_csr("retry.example.gov")
    first, second = running.issue(csr, key=key), running.issue(csr, key=key)
    assert (first.status, second.status) == (201, 201)
    assert second.json == first.json
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    other = running.issue(make_csr("other.example.gov"), key=key)
    assert (other.status, other.json["type"]) == (422, "/docs#idempotency-conflict")
    assert running.issue(csr, key="with space").status == 400


def test_simultaneous_calls_with_one_key_issue_one_certificate(running: RunningCertmill) -> None:
    key, csr = str(uuid.uuid4()), make_csr("race.example.gov")
    replies: list[Reply] = []
    threads = [threading.Thread(target=lambda: replies.append(running.issue(csr, key=key))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {r.status for r in replies} == {201}
    assert len({r.json["serial"] for r in replies}) == 1


def test_search_filters_and_pages(running: RunningCertmill) -> None:
    domain = f"{secrets.token_hex(4)}.example.gov"
    serials = [running.issue(make_csr(f"h{n}.{domain}")).json["serial"] for n in range(3)]
    running.revoke(serials[0])
    assert found(running, f"subject={domain}") == set(serials)
    assert found(running, f"subject={domain}&status=revoked") == {serials[0]}
    assert found(running, f"subject={domain}&status=good&profile=tls-server") == set(serials[1:])
    assert found(running, f"dns_name=h1.{domain}") == {serials[1]}
    assert found(running, f"subject={domain}&status=expired") == set()
    assert found(running, f"subject={domain}&expires_before=2020-01-01T00:00:00Z") == set()
    pages, cursor = [], ""
    while True:
        page = running.api("GET", f"/v1/certificates?limit=2&subject={domain}{cursor}").json
        pages.append([c["serial"] for c in page["certificates"]])
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert [serial for page in pages for serial in page] == serials[::-1]


def found(running: RunningCertmill, query: str) -> set[str]:
    reply = running.api("GET", f"/v1/certificates?{query}")
    assert reply.status == 200, reply.body
    return {c["serial"] for c in reply.json["certificates"]}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=%21", "status=bad", "surprise=1", "expires_before=soon"]
)
def test_wrong_filters_are_named(running: RunningCertmill, query: str) -> None:
    reply = running.api("GET", f"/v1/certificates?{query}")
    assert reply.status == 400
    assert reply.json["field"] == query.partition("=")[0]


def test_revocation_repeats_conflicts_and_refuses(running: RunningCertmill) -> None:
    serial = running.issue(make_csr("revoked.example.gov")).json["serial"]
    first = running.revoke(serial.upper(), "keyCompromise")
    assert (first.status, first.json["serial"], first.json["reason"]) == (200, serial, "keyCompromise")
    assert running.revoke(serial, "keyCompromise").json == first.json
    assert running.revoke(serial, "superseded").status == 409
    assert running.revoke("ab" * 16).status == 404
    assert running.revoke("zz").status == 400
    assert running.revoke(serial, "certificateHold").status == 400
    read = running.api("GET", f"/v1/certificates/{serial}").json
    assert (read["status"], read["revocation_reason"]) == ("revoked", "keyCompromise")


def test_a_replay_says_what_is_true_now(running: RunningCertmill) -> None:
    csr, key = make_csr("replayed.example.gov"), str(uuid.uuid4())
    serial = running.issue(csr, key=key).json["serial"]
    running.revoke(serial, "superseded")
    again = running.issue(csr, key=key)
    assert (again.status, again.headers["idempotent-replayed"]) == (201, "true")
    assert (again.json["serial"], again.json["status"]) == (serial, "revoked")


@pytest.mark.parametrize("limit", ["0", "1001", "00000000199999", "9" * 5000, "x", "١"])
def test_page_limits_are_limits(running: RunningCertmill, limit: str) -> None:
    assert running.api("GET", f"/v1/certificates?limit={quote(limit)}").status == 400


def test_subjects_in_lao_are_issued(running: RunningCertmill) -> None:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    with bounds_in_characters():
        name = x509.NameAttribute(NameOID.COMMON_NAME, "ກ" * 64, _validate=False)
    reply = running.issue(make_csr(None, extra=(name,)), profile="tls-client")
    assert reply.status == 201, reply.body
    assert "ກ" * 64 in reply.json["subject"]


def test_names_stand_in_json_where_the_profile_takes_them_from_there(running: RunningCertmill) -> None:
    csr = make_csr(None).decode()
    subject = {"C": "LA", "O": "ກະຊວງການເງິນ", "OU": ["ກົມ 1", "ກົມ 2"], "title": "ຫົວໜ້າ", "CN": "ຫົວໜ້າກົມ"}
    body: dict[str, object] = {"profile": "government-position", "csr": csr, "subject": subject}
    reply = running.api("POST", "/v1/certificates", {**body, "names": {"email": ["office@Example.LA"]}})
    assert reply.status == 201
    assert reply.json["subject"] == "CN=ຫົວໜ້າກົມ,title=ຫົວໜ້າ,OU=ກົມ 2,OU=ກົມ 1,O=ກະຊວງການເງິນ,C=LA"
    reply = running.api("POST", "/v1/certificates", {**body, "names": {"dns": ["a.gov"]}})
    assert (reply.status, reply.json["field"]) == (422, "names.dns")
    reply = running.api("POST", "/v1/certificates", {**body, "names": {"mail": ["a@a.la"]}})
    assert reply.status == 400
    other = make_csr("another").decode()
    reply = running.api("POST", "/v1/certificates", {**body, "csr": other})
    assert (reply.status, reply.json["field"]) == (422, "subject.CN")
    assert reply.json["remedy"] == "give it in one place, or the same in both"


def test_a_client_sees_only_its_own_certificates(running: RunningCertmill) -> None:
    from cryptography import x509

    api = x509.load_pem_x509_certificate((running.home / "secrets/api-cert.pem").read_bytes())
    assert running.api("GET", f"/v1/certificates/{serial_hex(api.serial_number)}").status == 404
    assert running.revoke(serial_hex(api.serial_number)).status == 404


def test_documentation_needs_no_other_host(running: RunningCertmill) -> None:
    document = running.api("GET", "/openapi.json")
    assert document.json["openapi"].startswith("3.1")
    for reply in (running.api("GET", "/docs"), running.admin("/docs")):
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/html")
        assert b"src=" not in reply.body
        assert b"<script" not in reply.body


def test_metrics_of_every_process(running: RunningCertmill) -> None:
    running.issue(make_csr("metrics.example.gov"))
    text = running.admin("/metrics").body.decode()
    assert 'certmill_process_up{process="ocsp-0"} 1.0' in text
    for name in (
        "certmill_certificates_issued_total",
        "certmill_signer_signatures_total",
        "certmill_ocsp_responses_total",
    ):
        assert name in text
    assert running.admin("/healthz").body == b"ok\n"
    assert running.admin("/readyz").json == {"ready": True, "reasons": []}
