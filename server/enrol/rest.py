"""The REST API, version 1: translates HTTP to the issuing and revocation services, and does nothing else."""

import base64
import datetime as dt
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import msgspec
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.asked import AskedNames
from pkix.attributes import subject_text
from pkix.crl import RevocationReason
from pkix.issuer import Issuer
from pkix.names import SerialNumber, serial_hex
from server.auth.clients import Client, ClientRegistry
from server.auth.rate import RateLimiter
from server.clock import Clock, epoch, from_epoch
from server.enrol import messages
from server.errors import InvalidRequest, RateExceeded
from server.issuance.catalogue import Catalogue, CertificateFilter
from server.issuance.order import IssuedCertificate, Order
from server.issuance.profiles import ProfileRegistry
from server.issuance.service import IssuanceService
from server.revocation.service import RevocationService
from server.storage.database import AnyRow
from server.web.body import decode_json, read_body
from server.web.middleware import ADDED_HEADERS, REQUEST_ID

PEM_CHAIN = "application/pem-certificate-chain"  # RFC 8555 §9.1
PKCS10 = "application/pkcs10"  # RFC 5967
_KEY = re.compile(r"[\x21-\x7e]{1,128}")
_SERIAL = re.compile(r"[0-9a-fA-F]{2,40}")
MAX_PAGE = 1000
FILTERS = frozenset(
    {"profile", "status", "dns_name", "subject", "expires_before", "expires_after", "renewed", "limit", "cursor"}
)
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class RestApi:
    """The handlers and what they need."""

    issuer: Issuer
    registry: ClientRegistry
    limiter: RateLimiter
    issuance: IssuanceService
    profiles: ProfileRegistry
    revocation: RevocationService
    catalogue: Catalogue
    clock: Clock
    body_deadline_s: float

    def routes(self) -> list[web.RouteDef]:
        """Return the routes under `/v1`."""
        return [
            web.post("/v1/certificates", self.create),
            web.get("/v1/certificates", self.search),
            web.get("/v1/certificates/{serial}", self.read),
            web.post("/v1/certificates/{serial}/revocation", self.revoke),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """Issue a certificate: JSON in and out, or PKCS #10 in and a PEM chain out."""
        client = await self.admitted(request)
        body = await read_body(request, deadline_s=self.body_deadline_s)
        order = self._order(request, client, body)
        return await self.answer(request, client, await self.issuance.issue(order))

    async def answer(self, request: web.Request, client: Client, issued: IssuedCertificate) -> web.Response:
        """Answer with an issued certificate, in the form that belongs to that of the request."""
        serial = serial_hex(issued.serial)
        headers = {"Location": f"/v1/certificates/{serial}", "Cache-Control": "no-store"}
        if issued.replayed:
            headers["Idempotent-Replayed"] = "true"
        if request.content_type == PKCS10:
            return web.Response(
                status=201,
                text=_pem(issued.certificate_der) + self.issuer.certificate_pem,
                content_type=PEM_CHAIN,
                headers=headers,
            )
        if issued.replayed:  # it may be revoked or expired by now
            present = self._row(await self.catalogue.one(serial, client=client.name))
        else:
            present = self._issued(issued)
        return json_response(present, status=201, headers=headers)

    async def read(self, request: web.Request) -> web.Response:
        """Return one certificate of the client."""
        client = await self.client(request)
        row = await self.catalogue.one(serial_of(request), client=client.name)
        if PEM_CHAIN in request.headers.get("Accept", ""):
            return web.Response(text=_pem(row.der) + self.issuer.certificate_pem, content_type=PEM_CHAIN)
        return json_response(self._row(row))

    async def search(self, request: web.Request) -> web.Response:
        """Return a page of the client's certificates."""
        client = await self.client(request)
        wanted = _filter(request.query)
        rows = await self.catalogue.page(wanted, client=client.name, now=epoch(self.clock()))
        more = len(rows) == wanted.limit
        return json_response(
            messages.CertificateList(
                certificates=[self._row(row) for row in rows],
                next_cursor=_cursor(rows[-1].id) if more else None,
            )
        )

    async def revoke(self, request: web.Request) -> web.Response:
        """Revoke one certificate of the client, for ever."""
        client = await self.client(request)
        serial = serial_of(request)
        body = await read_body(request, deadline_s=self.body_deadline_s)
        asked = decode_json(body, messages.RevocationRequest) if body else messages.RevocationRequest()
        revocation = await self.revocation.revoke(
            SerialNumber(int(serial, 16)), asked.reason, client=client.name, request_id=request[REQUEST_ID]
        )
        return json_response(
            messages.RevocationAnswer(
                serial=serial_hex(revocation.serial),
                revoked_at=from_epoch(revocation.revoked_at),
                reason=revocation.reason,
                ocsp="revoked" if revocation.answer_published else "pending",
            )
        )

    async def client(self, request: web.Request) -> Client:
        """Return who calls; raises `NotAuthenticated`."""
        return await self.registry.identify(peer_certificate(request))

    async def admitted(self, request: web.Request) -> Client:
        """Return who calls, and count the request; raises `RateExceeded` too."""
        client = await self.client(request)
        count_request(request, self.limiter, client)
        return client

    def _order(self, request: web.Request, client: Client, body: bytes) -> Order:
        if request.content_type == PKCS10:
            profile, csr, days, names = request.query.get("profile"), body, None, None
        elif request.content_type == "application/json":
            asked = decode_json(body, messages.CertificateRequest)
            profile, csr, days, names = asked.profile, asked.csr.encode(), asked.validity_days, asked_names(asked)
        else:
            raise web.HTTPUnsupportedMediaType(text=f"send application/json or {PKCS10}")
        return Order(
            client=client,
            profile=self.profiles.named(profile),
            csr=csr,
            request_id=request[REQUEST_ID],
            lifetime=None if days is None else dt.timedelta(days=days),
            idempotency_key=idempotency_key(request),
            asked=names,
        )

    def _issued(self, issued: IssuedCertificate) -> messages.Certificate:
        read = x509.load_der_x509_certificate(issued.certificate_der)
        return messages.Certificate(
            serial=serial_hex(issued.serial),
            status="good",
            profile=issued.profile,
            subject=subject_text(read.subject),
            dns_names=_dns_names(read),
            not_before=issued.not_before,
            not_after=issued.not_after,
            certificate=_pem(issued.certificate_der),
            chain=[self.issuer.certificate_pem],
        )

    def _row(self, row: AnyRow) -> messages.Certificate:
        status: messages.Status = "good"
        if row.revoked_at is not None:
            status = "revoked"
        elif row.not_after < epoch(self.clock()):
            status = "expired"
        return messages.Certificate(
            serial=row.serial,
            status=status,
            profile=row.profile,
            subject=row.subject,
            dns_names=row.dns_names,
            not_before=from_epoch(row.not_before),
            not_after=from_epoch(row.not_after),
            certificate=_pem(row.der),
            chain=[self.issuer.certificate_pem],
            revoked_at=None if row.revoked_at is None else from_epoch(row.revoked_at),
            revocation_reason=None if row.reason is None else RevocationReason(row.reason),
        )


def count_request(request: web.Request, limiter: RateLimiter, client: Client) -> None:
    """Count a request for certificates; the answer tells how many may follow. Raises `RateExceeded`."""
    try:
        allowance = limiter.take(client)
    except RateExceeded as error:
        request[ADDED_HEADERS] = error.allowance.headers
        raise
    if allowance is not None:
        request[ADDED_HEADERS] = allowance.headers


def peer_certificate(request: web.Request) -> bytes | None:
    """Return the client certificate of the connection (DER)."""
    transport = request.transport
    tls = None if transport is None else transport.get_extra_info("ssl_object")
    return tls.getpeercert(binary_form=True) if isinstance(tls, ssl.SSLObject) else None


def asked_names(asked: messages.CertificateRequest) -> AskedNames | None:
    """Return the names that the JSON of a request gives; None if it gives none."""
    names = asked.names or messages.RequestedNames()
    subject = asked.subject or {}
    found = AskedNames(
        subject=tuple(
            (name, value)
            for name, values in subject.items()
            for value in ([values] if isinstance(values, str) else values)
        ),
        dns_names=tuple(names.dns),
        ip_addresses=tuple(names.ip),
        emails=tuple(names.email),
        uris=tuple(names.uri),
    )
    return found if found.as_json else None


def idempotency_key(request: web.Request) -> str | None:
    """Return the call's key; raises `InvalidRequest`."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(
            "the idempotency key is not 1 to 128 visible ASCII characters",
            field="Idempotency-Key",
            remedy="use a UUID, one for each certificate that you want",
        )
    return key


def serial_of(request: web.Request) -> str:
    """Return the serial number in the path; raises `InvalidRequest`."""
    text = request.match_info["serial"]
    if not _SERIAL.fullmatch(text):
        raise InvalidRequest(
            "a serial number is 2 to 40 hexadecimal digits",
            field="serial",
            remedy="use the `serial` of an answer, or: openssl x509 -noout -serial",
        )
    return serial_hex(int(text, 16))


def _filter(query: Mapping[str, str]) -> CertificateFilter:
    unknown = sorted(set(query) - FILTERS)
    if unknown:
        raise _bad_filter(unknown[0], f"there is no filter {unknown[0][:40]!r}")
    status = query.get("status")
    if status is not None and status not in get_args(messages.Status):
        raise _bad_filter("status", "status is good, revoked or expired")
    limit = query.get("limit", "100")
    if not re.fullmatch(r"[0-9]{1,4}", limit, re.ASCII) or not 1 <= int(limit) <= MAX_PAGE:
        raise _bad_filter("limit", f"limit is a number from 1 to {MAX_PAGE}")
    return CertificateFilter(
        profile=query.get("profile"),
        status=status,
        dns_name=query.get("dns_name"),
        subject=query.get("subject"),
        expires_before=_moment(query, "expires_before"),
        expires_after=_moment(query, "expires_after"),
        renewed=_truth(query, "renewed"),
        after_id=_row_id(query.get("cursor")),
        limit=int(limit),
    )


def _truth(query: Mapping[str, str], name: str) -> bool | None:
    text = query.get(name)
    if text not in {None, "true", "false"}:
        raise _bad_filter(name, f"{name} is true or false")
    return None if text is None else text == "true"


def _moment(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        moment = msgspec.convert(text, dt.datetime)
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
        return epoch(aware)
    except (msgspec.ValidationError, OverflowError):
        raise _bad_filter(name, f"{name} is an RFC 3339 time") from None


def _cursor(row_id: int) -> str:
    return base64.urlsafe_b64encode(str(row_id).encode()).decode().rstrip("=")


def _row_id(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    try:
        digits = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except ValueError:
        digits = ""
    if not re.fullmatch(r"[0-9]{1,18}", digits):
        raise _bad_filter("cursor", "cursor is not one of ours")
    return int(digits)


def _bad_filter(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, field=field[:40], remedy=f"filters are: {', '.join(sorted(FILTERS))}")


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _pem(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")


def json_response(message: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return an answer in JSON."""
    return web.Response(
        status=status, body=_encoder.encode(message), content_type="application/json", headers=headers
    )
