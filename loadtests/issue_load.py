"""Single calls for `make bench-issue`: so many connections, each asking again as soon as it has its answer.

A process of its own (`python -m loadtests.issue_load`), so that the caller's work is on the other core. It reads
one line of JSON, a `Calls`, and answers with the certificates per second. Requests are prepared beforehand and
answers are only counted: what is measured is the server.
"""

import asyncio
import itertools
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

_END_OF_HEADERS = b"\r\n\r\n"


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to call, with whose certificate, for which CSRs (PEM), and for how long."""

    port: int
    root: str
    certificate: str
    key: str
    profile: str
    csrs: list[str]
    connections: int
    seconds: float


async def certificates_per_s(calls: Calls) -> float:
    """Call for `seconds`; returns certificates per second. Raises SystemExit for any answer but 201."""
    context = ssl.create_default_context(cafile=calls.root)
    context.load_cert_chain(calls.certificate, calls.key)
    requests = itertools.cycle([_request(calls, csr) for csr in calls.csrs])
    streams = [
        await asyncio.open_connection("127.0.0.1", calls.port, ssl=context, server_hostname="localhost")
        for _ in range(calls.connections)
    ]
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        callers = [
            group.create_task(_call(reader, writer, requests, start + calls.seconds)) for reader, writer in streams
        ]
    return sum(caller.result() for caller in callers) / (time.perf_counter() - start)


async def _call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Iterator[bytes], end: float
) -> int:
    count = 0
    while time.perf_counter() < end:
        writer.write(next(requests))
        head = await reader.readuntil(_END_OF_HEADERS)
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 201 "):
            raise SystemExit(f"not issued: {body.decode()[:500]}")
        count += 1
    writer.close()
    return count


def _request(calls: Calls, csr: str) -> bytes:
    body = msgspec.json.encode({"profile": calls.profile, "csr": csr})
    head = (
        "POST /v1/certificates HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def in_a_process(calls: Calls) -> float:
    """Let a child make the calls."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    answer, _ = await child.communicate(msgspec.json.encode(calls) + b"\n")
    if child.returncode:
        raise SystemExit("the calls failed, see above")
    return float(answer)


if __name__ == "__main__":
    print(uvloop.run(certificates_per_s(msgspec.json.decode(sys.stdin.buffer.readline(), type=Calls))))
