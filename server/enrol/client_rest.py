"""The REST API of a client's own affairs: usage, and the renewal of its certificates. Translates only."""

import datetime as dt
from dataclasses import dataclass

import msgspec
from aiohttp import web

from server.clock import from_epoch
from server.enrol import client_messages as messages
from server.enrol.rest import PKCS10, RestApi, idempotency_key, json_response, serial_of
from server.renewal.service import Renewals
from server.renewal.window import renewal_window
from server.usage.report import UsageReports
from server.web.body import decode_json, read_body
from server.web.middleware import REQUEST_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientApi:
    """The handlers and what they need."""

    rest: RestApi
    usage: UsageReports
    renewals: Renewals

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/v1/usage", self.read_usage),
            web.get("/v1/certificates/{serial}/renewal-info", self.renewal_info),
            web.post("/v1/certificates/{serial}/renewal", self.renew),
        ]

    async def read_usage(self, request: web.Request) -> web.Response:
        """Return what the client used, and the forecast."""
        client = await self.rest.client(request)
        report = await self.usage.of(client.name)
        limits = msgspec.convert(client, messages.Limits, from_attributes=True)
        fields = {name: getattr(report, name) for name in report.__slots__ if name not in {"expiring", "forecast"}}
        return json_response(
            messages.Usage(
                **fields,
                limits=limits,
                expiring=msgspec.convert(report.expiring, messages.Expiring, from_attributes=True),
                forecast=msgspec.convert(report.forecast, messages.Forecast, from_attributes=True),
            ),
            headers={"Cache-Control": "no-store"},
        )

    async def renewal_info(self, request: web.Request) -> web.Response:
        """Say when to renew a certificate of the client, and when to ask again."""
        client = await self.rest.client(request)
        row = await self.rest.catalogue.one(serial_of(request), client=client.name)
        window = renewal_window(
            row.serial,
            from_epoch(row.not_before),
            from_epoch(row.not_after),
            revoked_at=None if row.revoked_at is None else from_epoch(row.revoked_at),
        )
        suggested = messages.SuggestedWindow(start=window.start, end=window.end)
        return json_response(
            messages.RenewalInfo(suggested_window=suggested),
            headers={"Retry-After": str(int(window.retry_after.total_seconds()))},
        )

    async def renew(self, request: web.Request) -> web.Response:
        """Issue the successor of a certificate of the client."""
        client = await self.rest.admitted(request)
        body = await read_body(request, deadline_s=self.rest.body_deadline_s)
        csr, days = _csr(request, body)
        issued = await self.renewals.renew(
            serial_of(request),
            client=client,
            csr=csr,
            request_id=request[REQUEST_ID],
            lifetime=None if days is None else dt.timedelta(days=days),
            idempotency_key=idempotency_key(request),
        )
        return await self.rest.answer(request, client, issued)


def _csr(request: web.Request, body: bytes) -> tuple[bytes, int | None]:
    if request.content_type == PKCS10:
        return body, None
    if request.content_type == "application/json":
        asked = decode_json(body, messages.RenewalRequest)
        return asked.csr.encode(), asked.validity_days
    raise web.HTTPUnsupportedMediaType(text=f"send application/json or {PKCS10}")
