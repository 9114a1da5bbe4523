"""What the tests of the responder share: a store with answers in it, and a clock to move."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from ocsp.lmdb_store import LmdbStore
from ocsp.store import IssuerTag, ResponseKey, Status, StoredResponse, response_key

NOW = 1_795_435_200  # 2026-11-23 12:00:00 UTC, a second to begin with
DAY = 86_400
TAG = IssuerTag(b"issuer00")
SHA1 = (b"n" * 20, b"k" * 20)
SHA256 = (b"N" * 32, b"K" * 32)


class Clock:
    """A clock that stands still."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def response(
    status: Status = Status.GOOD, der: bytes = b"good", *, age_s: int = 0, left_s: int = 3 * DAY
) -> StoredResponse:
    """Make a response as seen from NOW."""
    if status is Status.REVOCATION_PENDING:
        der = b""
    return StoredResponse(status=status, this_update=NOW - age_s, next_update=NOW + left_s, der=der)


def key(serial: int, hash_name: str = "sha1") -> ResponseKey:
    """Say where the answer for a serial lies."""
    return response_key(TAG, "sha1" if hash_name == "sha1" else "sha256", serial)


def fill(directory: Path, entries: Sequence[tuple[ResponseKey, StoredResponse]], *, issuer: bool = True) -> None:
    """Write a store and close it: one process cannot have an LMDB environment open twice."""

    async def write(store: LmdbStore) -> None:
        await store.publish(entries)
        if issuer:
            await store.put_issuer(TAG, sha1=SHA1, sha256=SHA256)

    with_store(directory, write)


def with_store(directory: Path, work: Callable[[LmdbStore], object], *, max_bytes: int = 2**24) -> None:
    """Run a coroutine function with the opened writing side."""

    async def run() -> None:
        async with LmdbStore(directory, max_bytes=max_bytes) as store:
            await work(store)  # type: ignore[misc]  # a coroutine

    asyncio.run(run())
