"""Batches in an authority in this process: bodies in pieces, and a runner that runs for a block."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.app import Parts
from server.auth.clients import Client
from server.batches.intake import Asked
from server.batches.job import Job
from tests.support.authority import MINISTRY
from tests.support.ca import make_csr

_KEY = ec.generate_private_key(ec.SECP256R1())


def csr_text(name: str) -> str:
    """Return a CSR as rows carry it."""
    return base64.b64encode(make_csr(name, key=_KEY, encoding=Encoding.DER)).decode()


def good_rows(count: int, prefix: str = "host") -> list[dict[str, Any]]:
    return [
        {"reference": f"{prefix}-{n}", "csr": csr_text(f"{prefix}{n}.example.gov")} for n in range(1, count + 1)
    ]


def ndjson(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def pieces(data: bytes, size: int = 4096) -> Callable[[], Awaitable[bytes]]:
    """Return what gives a body away piece by piece."""
    parts = iter([data[i : i + size] for i in range(0, len(data), size)])

    async def read() -> bytes:
        return next(parts, b"")

    return read


async def enrol(parts: Parts, client: Client = MINISTRY) -> None:
    await parts.clients.enrol(client, client.name.encode().ljust(32, b"."))


async def send(
    parts: Parts, body: bytes | Iterable[dict[str, Any]], *, client: Client = MINISTRY, **asked: Any
) -> Job:
    return (await receive(parts, body, client=client, **asked))[0]


async def receive(
    parts: Parts, body: bytes | Iterable[dict[str, Any]], *, client: Client = MINISTRY, **asked: Any
) -> tuple[Job, bool]:
    """Send a batch (NDJSON, tls-server, unless told)."""
    data = body if isinstance(body, bytes) else ndjson(body)
    values = {"profile": "tls-server", "media_type": "application/x-ndjson", "request_id": "r-1", **asked}
    return await parts.batches.receive(Asked(client=client.name, **values), pieces(data))


@asynccontextmanager
async def runner(parts: Parts) -> AsyncIterator[None]:
    """Run the runner for the block."""
    task = asyncio.create_task(parts.batches.runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(parts: Parts, job: Job, fits: Callable[[Job], bool]) -> Job:
    """Wait until the job fits, 20 s at most; looks as a client does."""
    async with asyncio.timeout(20):
        while True:
            now = await parts.batches.one(job.id, client=job.client)
            if fits(now) and (not now.ended or parts.batches.runner.running(job.id) is None):
                return now
            await asyncio.sleep(0.01)


async def ended(parts: Parts, job: Job) -> Job:
    return await until(parts, job, lambda now: now.ended)


async def results(parts: Parts, job: Job) -> list[Any]:
    stream = await parts.batches.results(job.id, "ndjson", client=job.client)
    return [json.loads(line) for line in b"".join([piece async for piece in stream]).splitlines()]
