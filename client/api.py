"""certmill's API for ministry systems: one method for each call.

    with CertmillClient("https://pki.example.gov:8443", "cert.pem", "key.pem", "root.pem") as certmill:
        print(certmill.issue(csr_pem, "tls-server").pem)

Every method repeats what may pass (lost connections, time-outs, 429, 502, 503, 504) until its deadline, with the
same Idempotency-Key and no sooner than certmill asks for, and raises a `client.errors.CertmillError` otherwise.
"""

from collections.abc import Iterator, Mapping, Sequence

from client.batches import BatchCalls
from client.calls import new_key, path, pem
from client.messages import Certificate, CertificateList, RenewalInfo, Revocation, Usage


class CertmillClient(BatchCalls):
    """All calls; `Calls` says how it is made."""

    def issue(
        self,
        csr: str | bytes,
        profile: str,
        *,
        subject: Mapping[str, str] | None = None,
        names: Mapping[str, Sequence[str]] | None = None,
        validity_days: int | None = None,
        idempotency_key: str | None = None,
    ) -> Certificate:
        """Ask for a certificate for a PKCS #10 request (PEM or DER).

        `subject` ({"CN": …}) and `names` ({"dns": […], "ip": […], "email": […], "uri": […]}) are what a profile
        lets callers give beside the CSR. Without an `idempotency_key` one is made; it is in every error raised.
        """
        given = {"subject": subject, "names": names, "validity_days": validity_days}
        body = {"profile": profile, "csr": pem(csr), **{k: v for k, v in given.items() if v is not None}}
        return self._post(path("certificates"), body, Certificate, key=idempotency_key or new_key())

    def read(self, serial: str) -> Certificate:
        """Return one certificate of this client, with its status."""
        return self._get(path("certificates", serial), Certificate)

    def search(self, **filters: str | int) -> Iterator[Certificate]:
        """Give certificates of this client, newest first, page by page.

        Filters: profile, status (good, revoked, expired), dns_name, subject (a part of it), expires_before (RFC
        3339), and limit, the size of a page.
        """
        page = self._get(path("certificates", **filters), CertificateList)
        yield from page.certificates
        while page.next_cursor:
            page = self._get(path("certificates", **{**filters, "cursor": page.next_cursor}), CertificateList)
            yield from page.certificates

    def revoke(self, serial: str, reason: str = "unspecified") -> Revocation:
        """Revoke a certificate, for ever; `reason` as in RFC 5280 §5.3.1, for example keyCompromise."""
        return self._post(path("certificates", serial, "revocation"), {"reason": reason}, Revocation)

    def renewal_info(self, serial: str) -> RenewalInfo:
        """Ask when a certificate should be renewed."""
        return self._get(path("certificates", serial, "renewal-info"), RenewalInfo)

    def renew(
        self,
        serial: str,
        csr: str | bytes,
        *,
        validity_days: int | None = None,
        idempotency_key: str | None = None,
    ) -> Certificate:
        """Ask for the successor of a certificate, with the same subject and names, for a CSR with a new key."""
        body = {"csr": pem(csr), **({"validity_days": validity_days} if validity_days else {})}
        url = path("certificates", serial, "renewal")
        return self._post(url, body, Certificate, key=idempotency_key or new_key())

    def usage(self) -> Usage:
        """Return what this client has used of its quota, and what is to come."""
        return self._get(path("usage"), Usage)
