"""Batches as their users meet them: over mTLS, in pieces, followed, through a crash, fetched in every form."""

import csv
import http.client
import io
import json
import os
import signal
import socket
import ssl
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.authority import Table
from tests.support.batches import csr_text, good_rows, ndjson
from tests.support.ca import make_csr
from tests.support.certmill import Reply, RunningCertmill, certmill
from tests.support.token_site import environ, run

ROWS = 300
NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCertmill]:
    settings = {"CERTMILL_LISTEN_BODY_DEADLINE_S": "1", "CERTMILL_BATCHES_ROWS_IN_FLIGHT": "16"}
    with certmill(
        tmp_path_factory.mktemp("batches") / "home", CERTMILL_BATCHES_MAX_ROWS="500", **settings
    ) as running:
        yield running


def send(server: RunningCertmill, body: bytes, media_type: str = "application/x-ndjson", **headers: str) -> Reply:
    path = "/v1/batches?profile=tls-server"
    return server.api("POST", path, body, {"Content-Type": media_type, **headers})


def wait(server: RunningCertmill, batch: Any) -> Any:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            now = server.api("GET", f"/v1/batches/{batch['id']}").json
        except (OSError, http.client.HTTPException):
            continue  # it is being started
        if now["state"] in {"done", "failed", "cancelled"}:
            return now
    raise AssertionError(now)


def follow(server: RunningCertmill, batch: Any) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPSConnection("127.0.0.1", server.api_port, timeout=30, context=server.tls())
    connection.request("GET", f"/v1/batches/{batch['id']}/events")
    return connection, connection.getresponse()


def events(text: bytes) -> list[Any]:
    lines = text.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


@pytest.fixture(scope="module")
def done(server: RunningCertmill) -> Any:
    """A batch with Lao text and a formula in it, followed to its end."""
    rows = [
        *good_rows(20),
        {"reference": "=cmd|'/C calc'!A1", "csr": csr_text("x.example.gov")},
        {"reference": "ກະຊວງ"},
    ]
    reply = send(server, json.dumps(rows).encode(), "application/json")
    assert reply.status == 202
    assert reply.headers["location"] == f"/v1/batches/{reply.json['id']}"
    connection, response = follow(server, reply.json)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    told = events(response.read())  # it ends by itself
    connection.close()
    assert [one["issued"] for one in told] == sorted(one["issued"] for one in told)
    assert (told[-1]["state"], told[-1]["issued"], told[-1]["failed"], told[-1]["pending"]) == ("done", 21, 1, 0)
    return told[-1]


def test_results_come_in_three_forms(server: RunningCertmill, done: Any) -> None:
    path = f"/v1/batches/{done['id']}/results"
    lines = server.api("GET", path)
    assert lines.headers["content-type"] == "application/x-ndjson"
    rows = [json.loads(line) for line in lines.body.splitlines()]
    assert [row["number"] for row in rows] == list(range(1, 23))
    first = x509.load_pem_x509_certificate(rows[0]["certificate"].encode())
    assert f"{first.serial_number:x}" == rows[0]["serial"].lstrip("0")
    table = list(csv.reader(io.StringIO(server.api("GET", path + "?format=csv").body.decode("utf-8-sig"))))
    assert table[21][1] == "'=cmd|'/C calc'!A1"
    assert table[22][1:3] == ["ກະຊວງ", "failed"]
    packed = server.api("GET", path, headers={"Accept": "application/zip"})
    assert packed.headers["content-disposition"] == f'attachment; filename="batch-{done["id"]}.zip"'
    with zipfile.ZipFile(io.BytesIO(packed.body)) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 22
        chain = x509.load_pem_x509_certificates(archive.read("000001-host-1.pem"))
    assert chain[0] == first
    assert chain[0].issuer == chain[1].subject


def test_batches_are_listed_in_pages(server: RunningCertmill, done: Any) -> None:
    send(server, ndjson(good_rows(1)))
    seen: list[str] = []
    cursor = ""
    while True:
        page = server.api("GET", f"/v1/batches?limit=1{cursor}").json
        seen += [batch["id"] for batch in page["batches"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sorted(seen, reverse=True)
    assert done["id"] in seen


def test_csv_as_excel_writes_it(server: RunningCertmill) -> None:
    pem = make_csr("excel.example.gov").decode().replace("\n", "\r\n")
    text = f'sep=;\r\nreference;csr;validity_days\r\nແຖວ 1;"{pem}";30\r\n;;\r\n'
    reply = send(server, text.encode("utf-8-sig"), "text/csv; charset=utf-8")
    assert reply.status == 202, reply.body
    assert wait(server, reply.json)["issued"] == 1


def test_a_dry_run_signs_nothing(server: RunningCertmill) -> None:
    path = "/v1/batches?profile=tls-server&dry_run=true"
    reply = server.api("POST", path, ndjson([*good_rows(2), {"csr": csr_text("_")}]), NDJSON)
    ended = wait(server, reply.json)
    assert (ended["checked"], ended["failed"], ended["issued"]) == (2, 1, 0)


def test_a_key_makes_sending_safe_to_repeat(server: RunningCertmill) -> None:
    body = ndjson(good_rows(2))
    first = send(server, body, **{"Idempotency-Key": "k-1"})
    again = send(server, body, **{"Idempotency-Key": "k-1"})
    assert (first.status, again.status) == (202, 202)
    assert again.json["id"] == first.json["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = send(server, body + body, **{"Idempotency-Key": "k-1"})
    assert (other.status, other.json["type"]) == (422, "/docs#idempotency-conflict")


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "field"),
    [
        ("?profile=tls-server", {"Content-Type": "text/csv"}, b"csr;nam\nx;y\n", 400, "nam"),
        ("?profile=tls-server", NDJSON, b'{"csr":"x"}\n' * 501, 413, "body"),
        ("?profile=tls-server", {"Content-Type": "text/plain"}, b"x", 415, None),
        ("", NDJSON, b"{}", 400, "profile"),
        ("?profile=no-such", NDJSON, b"{}", 400, "profile"),
        ("?profile=tls-server&dryrun=true", NDJSON, b"{}", 400, "dryrun"),
        ("?profile=tls-server&dry_run=yes", NDJSON, b"{}", 400, "dry_run"),
        ("?profile=tls-server&validity_days=0", NDJSON, b"{}", 400, "validity_days"),
        ("?profile=tls-server", {**NDJSON, "Idempotency-Key": "a b"}, b"{}", 400, "Idempotency-Key"),
        ("?profile=tls-server", {**NDJSON, "Content-Encoding": "gzip"}, b"no gzip", 400, None),
    ],
)
def test_refusals_name_the_field(  # noqa: PLR0917
    server: RunningCertmill, path: str, headers: dict[str, str], body: bytes, status: int, field: str | None
) -> None:
    reply = server.api("POST", f"/v1/batches{path}", body, headers)
    assert (reply.status, reply.json.get("field")) == (status, field)
    assert reply.json["remedy"]


@pytest.mark.parametrize(
    ("method", "path", "status", "field"),
    [
        ("GET", "/v1/batches/xyz", 400, "id"),
        ("GET", f"/v1/batches/{'0' * 32}", 404, "id"),
        ("GET", f"/v1/batches/{'0' * 32}/events", 404, "id"),
        ("GET", f"/v1/batches/{'0' * 32}/results", 404, "id"),
        ("POST", f"/v1/batches/{'0' * 32}/cancel", 404, "id"),
        ("GET", f"/v1/batches/{'0' * 32}/results?format=xlsx", 400, "format"),
        ("GET", "/v1/batches?limit=0", 400, "limit"),
        ("GET", "/v1/batches?cursor=x", 400, "cursor"),
        ("GET", "/v1/batches?state=done", 400, "state"),
    ],
)
def test_wrong_questions_are_refused(
    server: RunningCertmill, method: str, path: str, status: int, field: str
) -> None:
    reply = server.api(method, path)
    assert (reply.status, reply.json["field"]) == (status, field)


def test_a_sender_that_falls_silent_is_refused_and_leaves_nothing(server: RunningCertmill) -> None:
    raw = socket.create_connection(("127.0.0.1", server.api_port), timeout=20)
    with server.tls().wrap_socket(raw, server_hostname="127.0.0.1") as connection:
        head = "POST /v1/batches?profile=tls-server HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        connection.sendall(head.encode() + b"Content-Length: 1000\r\n\r\n" + b'{"csr":"x"}\n')
        assert b"408" in connection.recv(100)
    assert Table(server.home).rows("select count(*) from jobs where state = 'receiving'") == [(0,)]


def test_a_client_sees_only_its_own(server: RunningCertmill, done: Any, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = server.api(
        "POST", "/v1/certificates", {"profile": "tls-client", "csr": make_csr("tax", key=key).decode()}
    )
    (tmp_path / "cert.pem").write_text(issued.json["certificate"])
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate = str(tmp_path / "cert.pem")
    run(environ(server.home), "client", "add", "tax", "--certificate", certificate, "--profile", "tls-client")
    theirs = ssl.create_default_context(cafile=str(server.home / "ca/root.pem"))
    theirs.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert server.api("GET", f"/v1/batches/{done['id']}", context=theirs).status == 404
    assert server.api("GET", "/v1/batches", context=theirs).json["batches"] == []
    refused = server.api("POST", "/v1/batches?profile=tls-server", b"{}", NDJSON, context=theirs)
    assert (refused.status, refused.json["type"]) == (403, "/docs#not-permitted")


def test_followers_are_let_go_when_certmill_stops(server: RunningCertmill) -> None:
    waiting = send(server, ndjson(good_rows(200))).json
    server.api("POST", f"/v1/batches/{waiting['id']}/pause")
    connection, response = follow(server, waiting)
    response.read1(4000)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 9  # it was let go, not waited for
    assert response.read() is not None
    connection.close()
    server.start()
    assert server.api("GET", f"/v1/batches/{waiting['id']}").json["state"] == "paused"


def test_a_killed_authority_goes_on_by_itself(server: RunningCertmill) -> None:
    body = ndjson(good_rows(ROWS, "many"))
    batch = send(server, body, **{"Idempotency-Key": "k"}).json
    while server.api("GET", f"/v1/batches/{batch['id']}").json["issued"] < 20:
        pass
    assert server.api("POST", f"/v1/batches/{batch['id']}/pause").json["state"] == "paused"
    connection, response = follow(server, batch)
    assert b"paused" in response.read1(4000)
    server.api("POST", f"/v1/batches/{batch['id']}/resume")
    os.kill(server.pids("server authority")[0], signal.SIGKILL)
    with pytest.raises((http.client.HTTPException, OSError)):
        response.read()  # cut off, not ended
    connection.close()
    ended = wait(server, batch)
    assert (ended["state"], ended["issued"]) == ("done", ROWS)
    rows = Table(server.home).rows(
        "select r.state, count(*), count(distinct r.serial), count(c.serial) from job_rows r join certificates c "
        "on c.issuer = 'issuing' and c.serial = r.serial and c.state = 'issued' where r.job = ?",
        batch["id"],
    )
    assert rows == [("issued", ROWS, ROWS, ROWS)]
    names = "select count(*) from certificates where subject like 'CN=many%' and state = 'issued'"
    assert Table(server.home).rows(names) == [(ROWS,)]  # and none beside them
    assert send(server, body, **{"Idempotency-Key": "k"}).json["id"] == batch["id"]
