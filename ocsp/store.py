"""The response store: what workers read and the authority writes.

The store merges monotonically. Inside the write transaction a lower status never replaces a higher one, and
under equal status an older response never replaces a newer one. So the order in which concurrent writers
arrive does not matter: a refresh that read "good" from the database just before a revocation cannot bring
"good" back, and nobody needs a lock across database, HSM and store to make sure of it.

Concurrent writers are minutes apart at most. An answer from further ahead was made while a clock was wrong, and no
relying party takes it (RFC 6960 §4.2.2.1): it gives way.
"""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from pkix.ocsp_response import HashName

IssuerTag = NewType("IssuerTag", bytes)
"""Eight octets that name an issuer inside the store."""

ResponseKey = NewType("ResponseKey", bytes)
"""Where a response belongs: hash of the CertID, issuer, serial number."""

_HASH_OCTET: dict[HashName, bytes] = {"sha1": b"\x01", "sha256": b"\x02"}
KEY_PREFIX_OCTETS = 9


class Status(enum.IntEnum):
    """What a stored answer says; only ever grows for one certificate.

    REVOCATION_PENDING has no body: "good" is gone, "revoked" is not signed yet, so workers say tryLater.
    """

    GOOD = 1
    REVOCATION_PENDING = 2
    REVOKED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A finished response; times in seconds since 1970. `der` is empty for REVOCATION_PENDING."""

    status: Status
    this_update: int
    next_update: int
    der: bytes


MENDED_CLOCK_S = 3600
"""By so much an answer must be ahead of a new one for its clock to have been wrong."""


def supersedes(new: StoredResponse, present: StoredResponse) -> bool:
    """Say whether a new response may take the place of the present one."""
    if new.status != present.status:
        return new.status > present.status
    ahead_s = present.this_update - new.this_update
    return ahead_s <= 0 or ahead_s > MENDED_CLOCK_S


def issuer_tag(certificate_der: bytes) -> IssuerTag:
    """Name the issuer that holds this certificate."""
    return IssuerTag(hashlib.sha256(certificate_der).digest()[:8])


def key_prefix(tag: IssuerTag, hash_name: HashName) -> bytes:
    """Return what the keys of all responses of one issuer under one CertID hash begin with."""
    return _HASH_OCTET[hash_name] + tag


def response_key(tag: IssuerTag, hash_name: HashName, serial: int) -> ResponseKey:
    """Return the key of a response; `serial` is positive."""
    return ResponseKey(key_prefix(tag, hash_name) + serial.to_bytes(serial.bit_length() // 8 + 1, "big"))


class ResponseReader(Protocol):
    """What a worker needs of the store. Reads are synchronous and take about 2 µs."""

    def read(self, key: ResponseKey) -> bytes | None:
        """Return the stored entry (see ocsp/entry.py), or None."""

    def generation(self) -> int:
        """Return a number that changes with every publication. Cost: 0.1 µs."""

    def key_prefixes(self) -> dict[bytes, bytes]:
        """Map the issuer hashes of a CertID (name and key hash in one) to the prefix of its keys."""


class ResponseStore(Protocol):
    """What the authority needs of the store. All methods raise `StoreError`."""

    async def publish(self, responses: Sequence[tuple[ResponseKey, StoredResponse]]) -> None:
        """Merge the responses durably and visibly, all or none."""

    async def get(self, key: ResponseKey) -> StoredResponse | None:
        """Return what is stored."""

    async def remove_many(self, keys: Sequence[ResponseKey]) -> None:
        """Forget the answers of expired certificates."""

    async def put_issuer(self, tag: IssuerTag, *, sha1: tuple[bytes, bytes], sha256: tuple[bytes, bytes]) -> None:
        """Tell workers which (name hash, key hash) mean the issuer called `tag`, and no other one from now on."""
