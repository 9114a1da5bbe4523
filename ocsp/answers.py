"""From the DER of a request to the answer in the store: shared by the fast and the slow path.

One place decides, so both paths say the same. Counters are plain integers; `metrics.py` exports them.
"""

import enum
import time
from collections.abc import Callable
from pathlib import Path

from ocsp.entry import Finisher
from ocsp.errors import StoreError
from ocsp.lmdb_store import LmdbReader
from ocsp.store import KEY_PREFIX_OCTETS, ResponseKey, Status
from pkix.ocsp_request import MALFORMED_REQUEST, TRY_LATER, UNAUTHORIZED

_SHA1_PREFIX = b"\x01"
_SHA256_PREFIX = b"\x02"


class Result(enum.IntEnum):
    """What was answered; indexes the counters."""

    GOOD = 0
    REVOKED = 1
    UNAUTHORIZED = 2
    TRY_LATER = 3
    MALFORMED = 4
    NOT_MODIFIED = 5


class Need(enum.Enum):
    """The authority has to sign this answer first: the certificate is known, this CertID hash is new."""

    FORWARD = enum.auto()


Answer = tuple[Result, bytes]
_BY_STATUS = {Status.GOOD: Result.GOOD, Status.REVOKED: Result.REVOKED}


class Answers:
    """Finds answers in the store of this host, which may not exist yet, or be replaced while we run."""

    def __init__(self, store_path: Path, *, max_age_cap_s: int, clock: Callable[[], float] = time.time) -> None:
        self._store_path = store_path
        self._reader: LmdbReader | None = None
        self._prefixes: dict[bytes, bytes] = {}
        self._prefixes_generation = -1
        self.finisher = Finisher(max_age_cap_s=max_age_cap_s, clock=clock)
        self.fast = [0] * len(Result)
        self.slow = [0] * len(Result)
        self.stale_refused = 0
        self.unknown_serials = 0
        self.unknown_issuers = 0

    def tick(self) -> None:
        """Once a second: open the store when it appears, follow it when it was replaced, learn its issuers."""
        self.finisher.tick()
        if self._reader is not None and self._reader.replaced():
            self.close()
        self._open()

    def _open(self) -> None:
        """Open the store if it is there, and learn the issuers that were added since."""
        try:
            if self._reader is None:
                self._reader = LmdbReader(self._store_path)
            generation = self._reader.generation()
            if generation != self._prefixes_generation:
                self._prefixes = self._reader.key_prefixes()
                self._prefixes_generation = generation
        except StoreError:
            self.close()

    def close(self) -> None:
        """Let go of the store."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._prefixes, self._prefixes_generation = {}, -1

    @property
    def open(self) -> bool:
        """Whether there is a store to answer from."""
        return self._reader is not None

    def generation(self) -> int:
        """Return the store's generation; -1 without a store, for which nothing may be kept."""
        return -1 if self._reader is None else self._reader.generation()

    def key(self, issuer_hashes: bytes, serial: bytes) -> ResponseKey | None:
        """Return where the answer would be; None if the issuer is not ours. `serial`: octets of the INTEGER."""
        prefix = self._prefixes.get(issuer_hashes)
        if prefix is None:
            self._open()  # the store, or this issuer in it, may be new
            prefix = self._prefixes.get(issuer_hashes)
        return None if prefix is None else ResponseKey(prefix + serial)

    def answer(self, key: ResponseKey | None) -> Answer | Need:
        """Return the HTTP answer of this second for a key."""
        if self._reader is None:
            self._open()  # it broke under an earlier question, or is new
        if self._reader is None or key is None:
            return self.unknown_issuer()
        try:
            entry = self._reader.read(key)
            if entry is None:
                return self._absent(self._reader, key)
        except StoreError:
            self.close()
            return self.try_later()
        finished = self.finisher.finish(entry)
        if finished is None:
            self.stale_refused += 1
            return self.try_later()
        return _BY_STATUS[finished[0]], finished[1]

    def _absent(self, reader: LmdbReader, key: ResponseKey) -> Answer | Need:
        """Tell "never issued" from "never asked with SHA-256": the SHA-1 answer is there from the start."""
        if key[:KEY_PREFIX_OCTETS] not in self._prefixes.values():
            return self.unknown_issuer()  # remembered from a store that was deleted, and is being rebuilt
        if key[:1] == _SHA256_PREFIX and reader.read(ResponseKey(_SHA1_PREFIX + key[1:])) is not None:
            return Need.FORWARD
        return self._never_issued()

    def unknown_issuer(self) -> Answer:
        """Answer for an issuer that is not in the store, or not named by SHA-1 or SHA-256.

        An issuer is registered when all its answers are there; while there is none, a store is being made or
        rebuilt, and "unauthorized" would be a lie.
        """
        if not self._prefixes:
            return self.try_later()
        self.unknown_issuers += 1
        return self._unauthorized()

    def _never_issued(self) -> Answer:
        """Answer for a serial number that our issuer never gave (RFC 9919 §3.2.3): it may be an attack."""
        self.unknown_serials += 1
        return self._unauthorized()

    def _unauthorized(self) -> Answer:
        return Result.UNAUTHORIZED, self.finisher.error(UNAUTHORIZED)

    def try_later(self) -> Answer:
        """Answer when there is nothing that may be served (RFC 6960 §2.3)."""
        return Result.TRY_LATER, self.finisher.error(TRY_LATER)

    def malformed(self) -> Answer:
        """Answer bytes that are no request."""
        return Result.MALFORMED, self.finisher.error(MALFORMED_REQUEST)
