"""A whole certmill as its users meet it: `certmill serve` in a home of its own, asked over its sockets."""

import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.ports import free_ports

START_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningCertmill:
    """`certmill serve`, or another `command`, on free ports; `api` speaks with the demo client's certificate."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    command: Sequence[str] = ("server", "serve")

    def __post_init__(self) -> None:
        self.api_port, self.public_port, self.admin_port = free_ports(3)
        self.log = self.home / "log"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the server: only what it needs."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CERTMILL_")}
        return {
            **inherited,
            "CERTMILL_HOME": str(self.home),
            "CERTMILL_LISTEN_API": f"127.0.0.1:{self.api_port}",
            "CERTMILL_LISTEN_PUBLIC": f"127.0.0.1:{self.public_port}",
            "CERTMILL_LISTEN_ADMIN": f"127.0.0.1:{self.admin_port}",
            **self.settings,
        }

    def start(self) -> None:
        """Start and wait for readiness; fails with the log."""
        self.launch(*self.command)
        self.wait_ready()

    def launch(self, module: str, *arguments: str) -> None:
        """Start a module of this checkout, whatever becomes of it."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=self.environ, stdout=log, stderr=log, text=True
            )

    def wait_ready(self) -> None:
        """Wait until the authority says that it is ready."""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"certmill ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if self.admin("/readyz").status == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"certmill is not ready:\n{self.log.read_text()}")

    def reasons(self) -> list[str]:
        """Wait until something does not work, and return what: it may be ready before it has asked every token."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not (reasons := self.admin("/readyz").json["reasons"]):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return [str(reason) for reason in reasons]

    def stop(self) -> int:
        """Ask it to stop, as Ctrl-C does, and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def pids(self, pattern: str) -> list[int]:
        """Return the ids of our descendants whose command line matches."""
        assert self.process is not None
        found = []
        for pid in _descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if re.search(pattern, command):
                found.append(pid)
        return found

    def admin(self, path: str) -> Reply:
        """GET from the admin listener."""
        return _ask(http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=10), "GET", path)

    def public(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """Ask the public listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.public_port, timeout=10)
        return _ask(connection, method, path, body, headers)

    def tls(self, *, client: bool = True) -> ssl.SSLContext:
        """Return a TLS context that trusts our root, with the demo client's certificate unless told."""
        context = ssl.create_default_context(cafile=str(self.home / "ca/root.pem"))
        if client:
            demo = self.home / "clients/demo"
            context.load_cert_chain(demo / "cert.pem", demo / "key.pem")
        return context

    def api(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        context: ssl.SSLContext | None = None,
    ) -> Reply:
        """Ask the API as the demo client, unless `context` is another's; a dict is sent as JSON."""
        context = context or self.tls()
        connection = http.client.HTTPSConnection("127.0.0.1", self.api_port, timeout=60, context=context)
        sent = dict(headers or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return _ask(connection, method, path, body, sent)

    def issue(self, csr: bytes, *, profile: str = "tls-server", key: str | None = None) -> Reply:
        """Ask for a certificate with JSON."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.api("POST", "/v1/certificates", {"profile": profile, "csr": csr.decode()}, headers)

    def revoke(self, serial: str, reason: str = "superseded") -> Reply:
        """Revoke a certificate."""
        return self.api("POST", f"/v1/certificates/{serial}/revocation", {"reason": reason})

    def openssl_ocsp(self, certificate: Path, *options: str) -> str:
        """Ask with `openssl ocsp` and return what it says, verification included."""
        done = subprocess.run(
            [
                "openssl", "ocsp", "-issuer", str(self.home / "ca/issuing.pem"), *options,
                "-cert", str(certificate), "-CAfile", str(self.home / "ca/chain.pem"),
                "-url", f"http://127.0.0.1:{self.public_port}/ocsp",
            ],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr


@contextmanager
def certmill(home: Path, **settings: str) -> Iterator[RunningCertmill]:
    """Run a certmill for the block; what it leaves behind is ended, by process id."""
    running = RunningCertmill(home, settings)
    try:
        running.start()
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = [int(text) for text in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found
