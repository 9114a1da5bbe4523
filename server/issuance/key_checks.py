"""Keys that get no certificate although the request is right: weak, known to others, or the CA's own."""

from collections.abc import Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.crl import RevocationReason
from pkix.csr import CertificationRequest
from pkix.errors import KeyRejected
from pkix.keys import NEW_KEY
from pkix.weak_keys import check_weaknesses
from server.storage.schema import certificates

_OWN = "certmill"
_OWN_REQUESTS = ("-", "own-api-cert")
"""`certificates.request_id` of CAs and responders, and of the API's TLS certificate; not of the demo client."""
_REMEMBERED = 20_000


class WeakKeys:
    """badkeys' checks for every key, once: it remembers 20,000 keys that have passed (2 MB)."""

    def __init__(self) -> None:
        self._passed: dict[bytes, None] = {}

    def check(self, request: CertificationRequest) -> None:
        """Raise `KeyRejected` for a weak key. Cost: see `check_weaknesses`; under 1 µs for a key seen before."""
        passed = self._passed
        if request.spki_sha256 in passed:
            return
        check_weaknesses(request.public_key)
        if len(passed) >= _REMEMBERED:
            del passed[next(iter(passed))]
        passed[request.spki_sha256] = None


KeyOfClient = tuple[bytes, str]
"""SHA-256 of the SubjectPublicKeyInfo, and who asks for a certificate."""


async def refused_keys(
    connection: AsyncConnection, asked: Sequence[KeyOfClient]
) -> dict[KeyOfClient, KeyRejected]:
    """Return which of these keys may not be certified for these clients, and why.

    A key that was revoked as compromised stays so for everybody, for ever and under every issuer (BR 6.1.1.3).
    A key of a CA, a responder or the API is certmill's alone. Asked inside the transaction that records the
    intents, so no revocation can slip in between. Cost: one query by index.
    """
    c = certificates.c
    compromised = c.reason == RevocationReason.KEY_COMPROMISE.value
    own = and_(c.client == _OWN, c.request_id.in_(_OWN_REQUESTS))
    query = select(c.spki_sha256, c.reason).where(
        c.spki_sha256.in_({key for key, _ in asked}), or_(compromised, own)
    )
    refused: dict[KeyOfClient, KeyRejected] = {}
    for key, reason in (await connection.execute(query)).all():
        for of_client in asked:
            if of_client[0] != key:
                continue
            if reason == RevocationReason.KEY_COMPROMISE.value:
                refused[of_client] = _rejected("the key was revoked as compromised")
            elif of_client[1] != _OWN:
                refused.setdefault(of_client, _rejected("the key is one of the CA's own"))
    return refused


def _rejected(detail: str) -> KeyRejected:
    return KeyRejected(detail, field="csr", remedy=NEW_KEY)
