"""One OCSP worker as a process of its own, without any authority, and raw questions to it over sockets."""

import base64
import http.client
import itertools
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ocsp.deadlines import Deadlines
from ocsp.store import Status, StoredResponse
from ocsp.worker import WorkerConfig, run
from tests.support.ports import free_ports
from tests.unit.ocsp.stores import SHA1, SHA256, fill, key

DEADLINES = Deadlines(idle_s=30, request_s=1, body_s=0.5)
MAX_CONNECTIONS = 20
SERIALS = itertools.count(1000)
HOST = b"Host: ocsp.test\r\n"


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, read off a socket."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Worker:
    """A running worker. Its store is `home/store`, its files are in `home/public`."""

    home: Path
    port: int
    process: "subprocess.Popen[str]"

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ask(self, *requests: bytes) -> list[Answer]:
        """Send raw requests in one piece on a connection of their own; return one answer to each."""
        with self.connect() as connection:
            connection.sendall(b"".join(requests))
            return [read_answer(connection) for _ in requests]

    def metrics(self) -> str:
        """Return what it tells Prometheus."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.home / "metrics.sock"))
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def counter(self, name: str) -> float:
        """Return the value of one of its metrics that has no labels."""
        (value,) = re.findall(rf"^{name} (\S+)$", self.metrics(), re.MULTILINE)
        return float(value)

    def stop(self) -> int:
        """Ask it to end and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def read_answer(connection: socket.socket) -> Answer:
    """Read exactly one answer, so that the next one stays in the socket."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            raise ConnectionError(f"closed after {head!r}")
        head += byte
    status, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    number = int(status.split(" ")[1])
    body = b""
    length = 0 if number == http.client.NOT_MODIFIED else int(headers.get("Content-Length", "0"))
    while len(body) < length:
        body += connection.recv(length - len(body))
    return Answer(number, headers, body)


@contextmanager
def running_worker(home: Path) -> Iterator[Worker]:
    """Start a worker and wait until it listens; it must end cleanly."""
    (home / "public" / "crl").mkdir(parents=True)
    (home / "public" / "ca").mkdir()
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.support.ocsp_worker", str(home), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert re.search("ocsp worker ready", process.stdout.readline())
    worker = Worker(home, port, process)
    try:
        yield worker
        if process.poll() is None:
            assert worker.stop() == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stored(
    status: Status = Status.GOOD, der: bytes = b"good", *, age_s: int = 60, left_s: int = 86_400
) -> StoredResponse:
    """Make a response as seen from now."""
    now = int(time.time())
    return StoredResponse(status=status, this_update=now - age_s, next_update=now + left_s, der=der)


def publish(worker: Worker, response: StoredResponse, serial: int | None = None, hash_name: str = "sha1") -> int:
    """Publish as an authority does that starts, publishes and ends; return the serial."""
    serial = serial or next(SERIALS)
    fill(worker.home / "store", [(key(serial, hash_name), response)])
    return serial


def question(serial: int, algorithm: str = "sha1", nonce: bytes | None = None) -> bytes:
    """Write an OCSPRequest (DER)."""
    chosen, names = (hashes.SHA1(), SHA1) if algorithm == "sha1" else (hashes.SHA256(), SHA256)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(*names, serial, chosen)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """Write a request without a body."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/{version}\r\n".encode() + HOST + lines.encode() + b"\r\n"


def path_of(serial: int) -> str:
    """Return the path that asks about a certificate."""
    return "/ocsp/" + base64.b64encode(question(serial)).decode()


def post(body: bytes, *headers: str) -> bytes:
    """Write a POST."""
    lines = "".join(f"{header}\r\n" for header in headers or ("Content-Type: application/ocsp-request",))
    return b"POST /ocsp HTTP/1.1\r\n" + HOST + lines.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def one(worker: Worker, request: bytes) -> Answer:
    """Return the answer to a request on a connection of its own."""
    return worker.ask(request)[0]


def _main(home: Path, port: int) -> None:
    config = WorkerConfig(
        host="127.0.0.1",
        port=port,
        store_path=home / "store",
        public_dir=home / "public",
        authority_socket=home / "authority.sock",
        metrics_socket=home / "metrics.sock",
        max_connections=MAX_CONNECTIONS,
        deadlines=DEADLINES,
    )
    run(config, structlog.get_logger())


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
