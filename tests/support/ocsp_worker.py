"""One OCSP worker as a process of its own, without any authority, asked over raw sockets."""

import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from ocsp.protocol import Deadlines
from ocsp.worker import WorkerConfig, run
from tests.support.certmill import free_ports

DEADLINES = Deadlines(idle_s=30, request_s=1, body_s=0.5)
MAX_CONNECTIONS = 20


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
