"""The Unix socket where keyless OCSP workers ask for an answer that nobody has asked for yet (SHA-256 CertIDs).

The answer that is given out is the one in the store after publishing, never the one just signed: if a
revocation overtook us, the store has kept "revoked", and that is what the asker gets.
"""

import asyncio

from aiohttp import web

from pkix.errors import MalformedOcspRequest
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.ocsp_request import UNAUTHORIZED, CertId, decode_request
from server.errors import InvalidRequest
from server.status.publisher import StatusPublisher

OCSP_RESPONSE = "application/ocsp-response"
_MAX_AT_ONCE = 64


class OcspSigningApi:
    """Signs, publishes and returns responses for issued certificates; unauthorized for everything else."""

    def __init__(self, *, issuer: Issuer, publisher: StatusPublisher) -> None:
        self._publisher = publisher
        self._hashes = {"sha1": issuer.hashes("sha1"), "sha256": issuer.hashes("sha256")}
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.post("/ocsp/sign", self.sign)]

    async def sign(self, request: web.Request) -> web.Response:
        """Answer a DER OCSPRequest with a DER OCSPResponse; 400 and 503 as problems."""
        try:
            cert_id = decode_request(await request.read()).cert_id
        except MalformedOcspRequest:
            raise InvalidRequest("not an OCSPRequest", remedy="send DER (RFC 6960 §4.1)") from None
        async with self._places:
            der = await self._answer(cert_id)
        return web.Response(body=der, content_type=OCSP_RESPONSE)

    async def _answer(self, cert_id: CertId) -> bytes:
        asked = (cert_id.issuer_name_hash, cert_id.issuer_key_hash)
        if self._hashes.get(cert_id.hash_algorithm) != asked:
            return UNAUTHORIZED
        serial = SerialNumber(cert_id.serial)
        if not await self._publisher.ensure_published(serial, cert_id.hash_algorithm):
            return UNAUTHORIZED
        return await self._publisher.stored_der(serial, cert_id.hash_algorithm)
