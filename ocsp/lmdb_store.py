"""The response store of one host: LMDB, written by its authorities, read by every worker.

LMDB lets one writer in at a time, whatever its process; so the merge in `_publish` holds among authorities too.

A publication is durable before the generation moves, and the generation moves before `publish` returns. If the
writer dies between the two, workers notice at the latest with the next second, for which they read anew.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import lmdb

from ocsp.entry import pack, unpack
from ocsp.errors import StoreBroken, StoreError, StoreFull
from ocsp.generation import Generation
from ocsp.store import IssuerTag, ResponseKey, StoredResponse, key_prefix, supersedes

T = TypeVar("T")
_ISSUER = b"\x00"
_SHA1_OCTETS = 40
MAP_BYTES = 2**40
"""What a reader maps: address space, not memory. Without it, its map would end where the file once ended."""


class LmdbStore:
    """The writing side; an async context manager. Blocking work happens in one thread of its own.

    `trouble` says why it does not work at present; None as soon as a write has succeeded again.
    """

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self.trouble: str | None = None

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._in_thread(self._close)  # the last in the queue
        self._thread.shutdown(wait=False)

    async def publish(self, responses: Sequence[tuple[ResponseKey, StoredResponse]]) -> None:
        """Merge the responses, see `ResponseStore`."""
        await self._in_thread(self._publish, responses)
        self.trouble = None

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        """Return what is stored, see `ResponseStore`."""
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[ResponseKey]) -> list[StoredResponse | None]:
        """Return what is stored under each key: one hop to the thread for all of them."""
        return await self._in_thread(self._get_many, keys)

    async def remove_many(self, keys: Sequence[ResponseKey]) -> None:
        """Forget the answers, see `ResponseStore`."""
        await self._in_thread(self._remove_many, keys)

    async def put_issuer(self, tag: IssuerTag, *, sha1: tuple[bytes, bytes], sha256: tuple[bytes, bytes]) -> None:
        """Register an issuer, see `ResponseStore`."""
        await self._in_thread(self._put_issuer, _ISSUER + tag, b"".join((*sha1, *sha256)))
        self.trouble = None

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except lmdb.MapFullError:
            self.trouble = f"full at {self._max_bytes} bytes: raise ocsp.store_max_gib"
            raise StoreFull(f"response store {self._directory} is {self.trouble}") from None
        except (lmdb.Error, OSError) as error:
            self.trouble = str(error)
            # LMDB lets nothing work in this process any more after a root of its tree could not be written.
            kind = StoreBroken if isinstance(error, lmdb.PanicError) else StoreError
            raise kind(f"response store {self._directory}: {error}") from error

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._env = lmdb.open(str(self._directory), map_size=self._max_bytes, mode=0o600)
        self._env.reader_check()  # slots of workers that were killed
        self._generation = Generation(self._directory / "generation", writable=True)
        self._generation.bump()

    def _close(self) -> None:
        self._generation.close()
        self._env.close()

    def _publish(self, responses: Sequence[tuple[ResponseKey, StoredResponse]]) -> None:
        with self._begin() as transaction:
            for key, response in responses:
                present = transaction.get(key)
                if present is None or supersedes(response, unpack(present)):
                    transaction.put(key, pack(response))
        self._generation.bump()

    def _get_many(self, keys: Sequence[ResponseKey]) -> list[StoredResponse | None]:
        with self._begin(write=False) as transaction:
            entries = [transaction.get(key) for key in keys]
        return [None if entry is None else unpack(entry) for entry in entries]

    def _remove_many(self, keys: Sequence[ResponseKey]) -> None:
        with self._begin() as transaction:
            for key in keys:
                transaction.delete(key)
        self._generation.bump()

    def _put_issuer(self, key: bytes, hashes: bytes) -> None:
        with self._begin() as transaction:
            for other in [other for other, same in _issuers(transaction) if same == hashes]:
                transaction.delete(other)
            transaction.put(key, hashes)
        self._generation.bump()

    def _begin(self, *, write: bool = True) -> Any:  # noqa: ANN401 - lmdb.Transaction, whose stubs know of no bytes
        """Begin; where another authority with a larger map has outgrown ours, take its size first."""
        try:
            return self._env.begin(write=write)
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)
            return self._env.begin(write=write)


class LmdbReader:
    """The reading side of one worker. Raises `StoreError` if there is no store yet, or it was replaced."""

    def __init__(self, directory: Path, *, max_bytes: int = MAP_BYTES) -> None:
        self._directory = directory
        try:
            self._generation = Generation(directory / "generation", writable=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"no response store at {directory}: {error}") from error
        try:
            self._env = lmdb.open(str(directory), readonly=True, create=False, map_size=max_bytes)
            self._identity = self._inode()
        except (lmdb.Error, OSError) as error:
            self._generation.close()
            raise StoreError(f"response store {directory}: {error}") from error

    def generation(self) -> int:
        """Return a number that changes with every publication."""
        return self._generation.value()

    def read(self, key: ResponseKey) -> bytes | None:
        """Return the entry under `key` as of now. Cost: about 2 µs."""
        try:
            transaction = self._begin()
            try:
                entry: bytes | None = transaction.get(key)
            finally:
                transaction.abort()
        except lmdb.Error as error:
            raise StoreError(f"response store {self._directory}: {error}") from error
        return entry

    def _begin(self) -> Any:  # noqa: ANN401 - lmdb.Transaction, whose stubs know of no bytes
        """Begin to read; where the writer's map has outgrown ours, take its size first."""
        try:
            return self._env.begin()
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)
            return self._env.begin()

    def key_prefixes(self) -> dict[bytes, bytes]:
        """Map issuer hashes to key prefixes, see `ResponseReader`."""
        prefixes: dict[bytes, bytes] = {}
        try:
            with self._begin() as transaction:
                for key, hashes in _issuers(transaction):
                    tag = IssuerTag(key[1:])
                    prefixes[hashes[:_SHA1_OCTETS]] = key_prefix(tag, "sha1")
                    prefixes[hashes[_SHA1_OCTETS:]] = key_prefix(tag, "sha256")
        except lmdb.Error as error:
            raise StoreError(f"response store {self._directory}: {error}") from error
        return prefixes

    def serials(self, prefix: bytes) -> Iterator[int]:
        """Go through the serial numbers of all entries under a key prefix, on one snapshot."""
        with self._begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(prefix):
                for key in cursor.iternext(values=False):
                    if not key.startswith(prefix):
                        break
                    yield int.from_bytes(key[len(prefix) :], "big")

    def replaced(self) -> bool:
        """Say whether the files are not those that were opened: the store was deleted and made anew."""
        return self._inode() != self._identity

    def close(self) -> None:
        """Release files and memory."""
        self._env.close()
        self._generation.close()

    def _inode(self) -> tuple[int, int]:
        try:
            return (self._directory / "data.mdb").stat().st_ino, (self._directory / "generation").stat().st_ino
        except OSError:
            return (0, 0)


def _issuers(transaction: Any) -> Iterator[tuple[bytes, bytes]]:  # noqa: ANN401 - lmdb.Transaction
    with transaction.cursor() as cursor:
        if cursor.set_range(_ISSUER):
            yield from itertools.takewhile(lambda entry: entry[0].startswith(_ISSUER), cursor)
