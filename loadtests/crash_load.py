"""Callers of a certmill that may die at any moment, and the journal of what it has acknowledged.

An acknowledgement is in the journal's file, fsynced, before anybody counts on it. A call without an answer may
have had its effect or not: it is made again with its idempotency key. One call in five has none, and is given up.
"""

import http.client
import json
import os
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.ca import make_csr
from tests.support.certmill import RunningCertmill

LOST = (OSError, http.client.HTTPException, ValueError)
"""What a caller sees of a server that has just died."""
REPEAT_S = 30.0
_PATIENCE_S = 20.0
_UNSENT = "no-key-"
_REPEATERS = 4
_ROWS = 24
_BETWEEN_BATCHES_S = 0.5
_REFUSED_S = 0.05


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as a caller got it."""

    serial: str
    pem: str


@dataclass
class Journal:
    """What was asked for, by idempotency key and by serial number, and what was acknowledged of it.

    `batches`: NDJSON by key; `taken`: the ids of those that were acknowledged.
    """

    path: Path
    csrs: dict[str, bytes] = field(default_factory=dict)
    issued: dict[str, Issued] = field(default_factory=dict)
    batches: dict[str, bytes] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    revoking: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def asks(self, key: str, csr: bytes) -> None:
        """Note a call that is about to be made."""
        with self._lock:
            self.csrs[key] = csr

    def asks_revocation(self, serial: str) -> None:
        """Note a revocation that is about to be asked for."""
        with self._lock:
            self.revoking.add(serial)

    def acknowledge(self, key: str, body: Mapping[str, Any]) -> Issued:
        """Write down a 201; the same key must always have the same certificate."""
        issued = Issued(body["serial"], body["certificate"])
        self._write({"key": key, "serial": issued.serial, "certificate": issued.pem})
        with self._lock:
            before = self.issued.setdefault(key, issued)
            if before != issued:
                self.wrong.append(f"key {key} got {before.serial}, then {issued.serial}")
        return issued

    def acknowledge_revocation(self, serial: str) -> None:
        """Write down a revocation that was answered."""
        self._write({"revoked": serial})
        with self._lock:
            self.revoked.add(serial)

    def acknowledge_batch(self, key: str, batch: str) -> None:
        """Write down a batch that was taken in; the same key must always have the same one."""
        self._write({"key": key, "batch": batch})
        with self._lock:
            if self.taken.setdefault(key, batch) != batch:
                self.wrong.append(f"batch {key} became {self.taken[key]}, then {batch}")

    def refuse(self, status: int, body: bytes) -> None:
        """Count an answer that is no success: only a clear 503 is right."""
        try:
            kind = json.loads(body)["type"]
        except (ValueError, KeyError):
            kind = body[:80].decode("utf-8", "replace")
        with self._lock:
            self.refused[f"{status} {kind}"] += 1
            if status != http.client.SERVICE_UNAVAILABLE:
                self.wrong.append(f"an answer was {status} {kind}")

    @property
    def open_calls(self) -> list[str]:
        """Return the keys of the calls that were never acknowledged and can be repeated."""
        return sorted(key for key in self.csrs if key not in self.issued and is_sent(key))

    @property
    def open_revocations(self) -> list[str]:
        """Return the serial numbers whose revocation was never acknowledged."""
        return sorted(self.revoking - self.revoked)

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            os.write(self._file, json.dumps(entry).encode() + b"\n")
            os.fsync(self._file)


class Caller:
    """One client with one connection, kept open. Raises `LOST` when the server goes away."""

    def __init__(self, running: RunningCertmill, context: ssl.SSLContext, journal: Journal) -> None:
        self._journal = journal
        self._connection = http.client.HTTPSConnection(
            "127.0.0.1", running.api_port, timeout=_PATIENCE_S, context=context
        )

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def issue(self, key: str) -> Issued | None:
        """Ask for the certificate of `key`; None if it was refused."""
        body = {"profile": "tls-server", "csr": self._journal.csrs[key].decode()}
        status, answer = self._post("/v1/certificates", body, {"Idempotency-Key": key} if is_sent(key) else {})
        if status != http.client.CREATED:
            self._journal.refuse(status, answer)
            return None
        return self._journal.acknowledge(key, json.loads(answer))

    def revoke(self, serial: str) -> bool:
        """Ask for a revocation; False if it was refused."""
        self._journal.asks_revocation(serial)
        status, answer = self._post(f"/v1/certificates/{serial}/revocation", {"reason": "superseded"}, {})
        if status != http.client.OK:
            self._journal.refuse(status, answer)
            return False
        self._journal.acknowledge_revocation(serial)
        return True

    def submit(self, key: str) -> bool:
        """Hand in a batch; False if it was refused."""
        body, headers = (
            self._journal.batches[key],
            {"Idempotency-Key": key, "Content-Type": "application/x-ndjson"},
        )
        status, answer = self._post("/v1/batches?profile=tls-server", body, headers)
        if status != http.client.ACCEPTED:
            self._journal.refuse(status, answer)
            return False
        self._journal.acknowledge_batch(key, json.loads(answer)["id"])
        return True

    def batch(self, batch: str) -> dict[str, Any]:
        """Ask how far a batch is."""
        self._connection.request("GET", f"/v1/batches/{batch}")
        answer: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return answer

    def _post(
        self, path: str, body: Mapping[str, object] | bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        sent = {"Content-Type": "application/json", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request("POST", path, data, sent)
        response = self._connection.getresponse()
        return response.status, response.read()


def is_sent(key: str) -> bool:
    """Say whether this key goes with its call, or is only our own name for it."""
    return not key.startswith(_UNSENT)


def _batch() -> bytes:
    """Make a batch in which one row must fail."""
    rows = [{"csr": make_csr(f"{secrets.token_hex(8)}.example.gov").decode()} for _ in range(_ROWS - 1)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in [*rows, {"csr": "none"}])


class Load:
    """Some callers at once, each in a thread, that call until the server is gone or they are told to stop.

    One more hands in batches, three at most.
    """

    def __init__(self, running: RunningCertmill, journal: Journal, *, callers: int = 8) -> None:
        self._running = running
        self._journal = journal
        self._stop = threading.Event()
        self._context = running.tls()
        works = [self._call] * callers + [self._submit]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        caller = Caller(self._running, self._context, self._journal)
        try:
            while not self._stop.is_set():
                key = ("" if secrets.randbelow(5) else _UNSENT) + secrets.token_hex(8)
                self._journal.asks(key, make_csr(f"{key}.example.gov"))
                issued = caller.issue(key)
                if issued is None:
                    self._stop.wait(_REFUSED_S)
                elif secrets.randbelow(3) == 0:
                    caller.revoke(issued.serial)
        except LOST:
            return
        finally:
            caller.close()

    def _submit(self) -> None:
        caller = Caller(self._running, self._context, self._journal)
        try:
            for _ in range(3):
                key = f"batch-{secrets.token_hex(8)}"
                self._journal.batches[key] = _batch()
                caller.submit(key)
                if self._stop.wait(_BETWEEN_BATCHES_S):
                    return
        except LOST:
            return
        finally:
            caller.close()


def repeat_open_calls(running: RunningCertmill, journal: Journal) -> None:
    """Ask again for everything without an answer, and for some that has one; notes what stays refused."""
    deadline = time.monotonic() + REPEAT_S
    context = running.tls()
    calls, revocations = journal.open_calls, journal.open_revocations
    known = list(filter(is_sent, list(journal.issued)[-5:]))

    def repeat(first: int) -> None:
        caller = Caller(running, context, journal)
        try:
            for key in calls[first::_REPEATERS]:
                _until(deadline, lambda key=key: caller.issue(key) is not None)  # type: ignore[misc]
            for serial in revocations[first::_REPEATERS]:
                _until(deadline, lambda serial=serial: caller.revoke(serial))  # type: ignore[misc]
            for key in known[first::_REPEATERS]:
                caller.issue(key)  # the journal compares
        except LOST as error:
            journal.wrong.append(f"a repeated call was not answered: {error!r}")
        finally:
            caller.close()

    with ThreadPoolExecutor(_REPEATERS + 1) as repeaters:
        batches = repeaters.submit(_end_batches, running, journal, deadline)
        list(repeaters.map(repeat, range(_REPEATERS)))
        batches.result()
    journal.wrong += [f"{key} was refused for {REPEAT_S:g} s" for key in journal.open_calls]
    journal.wrong += [f"the revocation of {serial} was refused" for serial in journal.open_revocations]


def _end_batches(running: RunningCertmill, journal: Journal, deadline: float) -> None:
    """Hand in again what has no answer, and wait for the end of every batch."""
    caller = Caller(running, running.tls(), journal)
    try:
        for key in sorted(journal.batches):
            if key not in journal.taken:
                _until(deadline, lambda key=key: caller.submit(key))  # type: ignore[misc]
        for key, batch in sorted(journal.taken.items()):
            _until(deadline, lambda batch=batch: caller.batch(batch)["state"] == "done")  # type: ignore[misc]
            found = caller.batch(batch)
            if (found["state"], found["issued"], found["failed"]) != ("done", _ROWS - 1, 1):
                journal.wrong.append(f"batch {key} did not end as it must: {found}")
    except LOST as error:
        journal.wrong.append(f"a batch was not answered: {error!r}")
    finally:
        caller.close()
    journal.wrong += [f"batch {key} was refused" for key in journal.batches if key not in journal.taken]


def _until(deadline: float, succeeded: Callable[[], bool]) -> None:
    while not succeeded() and time.monotonic() < deadline:
        time.sleep(0.1)
