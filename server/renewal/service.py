"""Renewal: another certificate for the same holder, with the same subject and names, under today's profile."""

import datetime as dt
from dataclasses import dataclass

from pkix.csr import CertificationRequest, parse_csr
from server.auth.clients import Client
from server.config import RenewalSection
from server.errors import AlreadyRenewed, RenewalRefused
from server.issuance.catalogue import Catalogue
from server.issuance.order import IssuedCertificate, Order, issued_before
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService
from server.renewal.names import names_of, require_same


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewals:
    """Renews certificates of one issuer."""

    catalogue: Catalogue
    issuance: IssuanceService
    profiles: ProfileRegistry
    settings: RenewalSection

    async def renew(
        self,
        serial: str,
        *,
        client: Client,
        csr: bytes,
        request_id: str,
        lifetime: dt.timedelta | None = None,
        idempotency_key: str | None = None,
    ) -> IssuedCertificate:
        """Issue the successor of a certificate of this client; a repeated call with the same CSR gets the same.

        Raises `NotFound`, `RenewalRefused` (revoked, ended long ago, renewed with another CSR, or the CSR asks for
        something else), and what issuing raises.
        """
        old = await self.catalogue.one(serial, client=client.name)
        request = parse_csr(csr)
        names = names_of(old.der)
        require_same(request, names)
        if not self.settings.reuse_key and request.spki_sha256 == old.spki_sha256:
            raise RenewalRefused(
                f"the CSR has the key of certificate {serial}",
                field="csr",
                remedy="make a new key: this CA renews with new keys only",
            )
        order = Order(
            client=client,
            profile=self.profiles.named(old.profile.partition("@")[0]),
            csr=csr,
            request_id=request_id,
            lifetime=lifetime,
            idempotency_key=idempotency_key,
            renews=serial,
            names=names,
        )
        try:
            return await self.issuance.issue(order)
        except AlreadyRenewed:
            present = await self._successor(serial, client, request)
            if present is None:
                raise
            await self.issuance.ensure_answered(present.serial)
            return present

    async def _successor(
        self, serial: str, client: Client, request: CertificationRequest
    ) -> IssuedCertificate | None:
        """Return the successor if this very CSR made it: then the call is only repeated."""
        row = await self.catalogue.successor(serial, client=client.name)
        if row is None or row.csr != request.der:
            return None
        return issued_before(row)
