"""Keys that get no certificate although the request is right: weak, known to others, or the CA's own."""

from collections.abc import Mapping, Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from pkix.crl import RevocationReason
from pkix.csr import CertificationRequest
from pkix.errors import KeyRejected
from pkix.keys import NEW_KEY
from pkix.weak_keys import check_weaknesses
from server.issuance.order import PreparedOrder
from server.storage.key_locks import hold_keys
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


async def refused_keys(
    connection: AsyncConnection, batch: Sequence[PreparedOrder], _now: int
) -> Mapping[int, KeyRejected]:
    """Refuse orders, by their place, whose key may not be certified: a check as `admission.py` wants it.

    A key that was revoked as compromised stays so for everybody, for ever and under every issuer (BR 6.1.1.3).
    A key of a CA, a responder or the API is certmill's alone. Asked inside the transaction that records the
    intents, so no revocation can slip in between. Cost: one query by index.
    """
    c = certificates.c
    compromised = c.reason == RevocationReason.KEY_COMPROMISE.value
    own = and_(c.client == _OWN, c.request_id.in_(_OWN_REQUESTS))
    keys = {p.certificate.spki_sha256 for p in batch}
    await hold_keys(connection, keys, alone=False)
    query = select(c.spki_sha256, c.reason).where(c.spki_sha256.in_(keys), or_(compromised, own)).distinct()
    known: dict[bytes, bool] = {}  # whether it was compromised
    for key, reason in (await connection.execute(query)).all():
        known[key] = known.get(key, False) or reason == RevocationReason.KEY_COMPROMISE.value
    refused: dict[int, KeyRejected] = {}
    for index, prepared in enumerate(batch):
        match known.get(prepared.certificate.spki_sha256):
            case True:
                refused[index] = _rejected("the key was revoked as compromised")
            case False if prepared.order.client.name != _OWN:
                refused[index] = _rejected("the key is one of the CA's own")
    return refused


def _rejected(detail: str) -> KeyRejected:
    return KeyRejected(detail, field="csr", remedy=NEW_KEY)
