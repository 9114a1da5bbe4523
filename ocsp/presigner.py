"""Signs OCSP responses ahead of the questions, and checks every one before it may be published."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ocsp.store import IssuerTag, ResponseKey, Status, StoredResponse, response_key
from pkix.errors import SignatureMismatch
from pkix.ocsp_response import (
    CertificateStatus,
    HashName,
    PreparedResponse,
    Responder,
    assemble_response,
    check_response,
    prepare_response,
)
from signer_pool.pool import Priority, SignerPool


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedResponse:
    """A verified response and where it belongs in the store."""

    key: ResponseKey
    stored: StoredResponse
    prepared: PreparedResponse


class Presigner:
    """Prepares and signs responses for the certificates of one issuer.

    `responder` may be exchanged for a newer certificate of the same key at any time (rotation); with
    another key, responses under way fail their check instead of being published.
    """

    def __init__(
        self,
        *,
        pool: SignerPool,
        responder: Responder,
        key_label: str,
        issuer_tag: IssuerTag,
        validity: dt.timedelta,
        clock: Callable[[], dt.datetime],
    ) -> None:
        self._pool = pool
        self.responder = responder
        self._key_label = key_label
        self._issuer_tag = issuer_tag
        self._validity = validity
        self._clock = clock

    def prepare(self, status: CertificateStatus, hash_name: HashName) -> PreparedResponse:
        """Prepare a response from now on; nextUpdate is clipped to the responder's life (MRSP 6)."""
        this_update = self._clock().replace(microsecond=0)
        next_update = min(this_update + self._validity, self.responder.certificate.not_valid_after_utc)
        return prepare_response(
            responder=self.responder,
            status=status,
            hash_name=hash_name,
            this_update=this_update,
            next_update=next_update,
        )

    async def sign(
        self, prepared: Sequence[PreparedResponse], priority: Priority, *, deadline_s: float = 30.0
    ) -> list[SignedResponse]:
        """Sign and check, in order; raises the pool's errors or `SignatureMismatch`."""
        responder = self.responder
        signatures = await self._pool.sign_many(
            self._key_label,
            [p.tbs for p in prepared],
            priority,
            algorithm=responder.algorithm.name,
            deadline_s=deadline_s,
        )
        # The pool has verified each signature with the key that it holds under this name, and never changes it.
        if self._pool.public_key(self._key_label) != responder.public_key:
            raise SignatureMismatch("the responder certificate is for another key than the tokens sign with")
        return [
            self._finish(one, signature, responder) for one, signature in zip(prepared, signatures, strict=True)
        ]

    def _finish(self, prepared: PreparedResponse, signature: bytes, responder: Responder) -> SignedResponse:
        der = assemble_response(prepared, responder, signature)
        check_response(der, prepared, responder, verified_signature=signature)
        status = prepared.status
        return SignedResponse(
            key=response_key(self._issuer_tag, prepared.hash_name, status.serial),
            stored=StoredResponse(
                status=Status.GOOD if status.revoked_at is None else Status.REVOKED,
                this_update=int(prepared.this_update.timestamp()),
                next_update=int(prepared.next_update.timestamp()),
                der=der,
            ),
            prepared=prepared,
        )

    def key(self, serial: int, hash_name: HashName) -> ResponseKey:
        """Return where the response for a certificate belongs in the store."""
        return response_key(self._issuer_tag, hash_name, serial)
