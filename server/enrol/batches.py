"""The REST API of batches: translates HTTP to `server.batches`, and does nothing else."""

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import get_args

import msgspec
from aiohttp import web

from server.auth.clients import Client, ClientRegistry
from server.batches.intake import READERS, Asked
from server.batches.job import Job
from server.batches.results import Form
from server.batches.service import LOOK_EVERY_S, Batches
from server.clock import from_epoch
from server.enrol.batch_messages import Batch, BatchList
from server.enrol.rest import idempotency_key, peer_certificate
from server.errors import InvalidRequest
from server.storage.schema import JobState
from server.web.middleware import REQUEST_ID, begin_stream, own_deadline
from server.web.upload import body_pieces

MEDIA_TYPES: dict[str, Form] = {"application/x-ndjson": "ndjson", "text/csv": "csv", "application/zip": "zip"}
EVENT_STREAM = "text/event-stream"
PARAMETERS = frozenset({"profile", "dry_run", "validity_days"})
MAX_PAGE = 100
HEARTBEAT_S = 10.0
STALL_S = 60.0
"""A reader that takes nothing for so long is gone."""
_ID = re.compile(r"[0-9a-f]{32}")
_DAYS = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)
_MAX_DAYS = 3660
_BOOLEANS = {"true": True, "false": False}
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchApi:
    """The handlers and what they need. `patience_s`: how long a sender may fall silent."""

    registry: ClientRegistry
    batches: Batches
    body_deadline_s: float
    patience_s: float

    def routes(self) -> list[web.RouteDef]:
        """Return the routes under `/v1/batches`."""
        return [
            web.post("/v1/batches", self.create),
            web.get("/v1/batches", self.list),
            web.get("/v1/batches/{id}", self.read),
            web.get("/v1/batches/{id}/events", self.events),
            web.post("/v1/batches/{id}/pause", self.pause),
            web.post("/v1/batches/{id}/resume", self.resume),
            web.post("/v1/batches/{id}/cancel", self.cancel),
            web.get("/v1/batches/{id}/results", self.results),
        ]

    @own_deadline
    async def create(self, request: web.Request) -> web.Response:
        """Take a batch in."""
        client = await self._client(request)
        asked = _asked(request, client)
        if asked.profile:
            client.require_profile(asked.profile)
        read = body_pieces(request, deadline_s=self.body_deadline_s, patience_s=self.patience_s)
        job, replayed = await self.batches.receive(asked, read)
        headers = {"Location": f"/v1/batches/{job.id}", "Cache-Control": "no-store"}
        if replayed:
            headers["Idempotent-Replayed"] = "true"
        return _json(_batch(job), status=202, headers=headers)

    async def list(self, request: web.Request) -> web.Response:
        """Return a page of the client's batches."""
        client = await self._client(request)
        before, limit = _page(request.query)
        jobs = await self.batches.page(client=client.name, before=before, limit=limit)
        cursor = jobs[-1].id if len(jobs) == limit else None
        return _json(BatchList(batches=[_batch(job) for job in jobs], next_cursor=cursor))

    async def read(self, request: web.Request) -> web.Response:
        """Return one batch."""
        client = await self._client(request)
        return _json(_batch(await self.batches.one(_id(request), client=client.name)))

    async def pause(self, request: web.Request) -> web.Response:
        """Begin no further row until the batch is resumed."""
        return await self._change(request, JobState.PAUSED)

    async def resume(self, request: web.Request) -> web.Response:
        """Go on with a paused batch."""
        return await self._change(request, JobState.QUEUED)

    async def cancel(self, request: web.Request) -> web.Response:
        """End a batch for ever; what is issued stays issued."""
        return await self._change(request, JobState.CANCELLED)

    @own_deadline
    async def events(self, request: web.Request) -> web.StreamResponse:
        """Tell how far a batch is until it ends (server-sent events)."""
        client = await self._client(request)
        job_id = _id(request)
        await self.batches.one(job_id, client=client.name)
        response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-store"})
        silent_s = 0.0
        async with aclosing(self.batches.follow(job_id, client=client.name)) as steps:
            async for job in steps:
                if not response.prepared:
                    await begin_stream(request, response)
                if job is not None:
                    await _write(response, b"event: progress\ndata: " + _encoder.encode(_batch(job)) + b"\n\n")
                    silent_s = 0.0
                elif (silent_s := silent_s + LOOK_EVERY_S) >= HEARTBEAT_S:
                    await _write(response, b": still here\n\n")
                    silent_s = 0.0
        return response

    @own_deadline
    async def results(self, request: web.Request) -> web.StreamResponse:
        """Send the results so far."""
        client = await self._client(request)
        job_id, form = _id(request), _form(request)
        pieces = await self.batches.results(job_id, form, client=client.name)
        media_type = next(name for name, one in MEDIA_TYPES.items() if one == form)
        headers = {
            "Content-Type": f"{media_type}; charset=utf-8" if form == "csv" else media_type,
            "Content-Disposition": f'attachment; filename="batch-{job_id}.{form}"',
            "Cache-Control": "no-store",
        }
        response = web.StreamResponse(headers=headers)
        async with aclosing(pieces):
            first = await anext(pieces, b"")  # what cannot begin is refused as a problem
            await begin_stream(request, response)
            await _write(response, first)
            async for piece in pieces:
                await _write(response, piece)
        return response

    async def _client(self, request: web.Request) -> Client:
        return await self.registry.identify(peer_certificate(request))

    async def _change(self, request: web.Request, to: JobState) -> web.Response:
        client = await self._client(request)
        job = await self.batches.change(_id(request), to, client=client.name, request_id=request[REQUEST_ID])
        return _json(_batch(job))


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    """Send a piece; waits while the client does not read, but not for ever. Raises TimeoutError."""
    if piece:
        async with asyncio.timeout(STALL_S):
            await response.write(piece)


def _asked(request: web.Request, client: Client) -> Asked:
    query = request.query
    unknown = sorted(set(query) - PARAMETERS)
    if unknown:
        raise InvalidRequest(
            f"there is no parameter {unknown[0][:40]!r}",
            field=unknown[0][:40],
            remedy=f"parameters are: {', '.join(sorted(PARAMETERS))}",
        )
    if request.content_type not in READERS:
        raise web.HTTPUnsupportedMediaType(text=f"send one of {', '.join(READERS)}")
    if query.get("dry_run", "false") not in _BOOLEANS:
        raise InvalidRequest("dry_run is neither true nor false", field="dry_run", remedy="say ?dry_run=true")
    days = query.get("validity_days")
    if days is not None and not (_DAYS.fullmatch(days) and int(days) <= _MAX_DAYS):
        raise InvalidRequest(
            f"validity_days is no number from 1 to {_MAX_DAYS}",
            field="validity_days",
            remedy="leave it out for the profile's own",
        )
    return Asked(
        client=client.name,
        profile=query.get("profile", ""),
        media_type=request.content_type,
        request_id=request[REQUEST_ID],
        dry_run=_BOOLEANS[query.get("dry_run", "false")],
        validity_days=None if days is None else int(days),
        idempotency_key=idempotency_key(request),
    )


def _batch(job: Job) -> Batch:
    return Batch(
        id=job.id,
        profile=job.profile,
        state=job.state.value,  # type: ignore[arg-type] # one that is being received is not shown
        dry_run=job.dry_run,
        rows=job.rows,
        issued=job.issued,
        failed=job.failed,
        checked=job.checked,
        pending=job.rows - job.counts.finished,
        created_at=from_epoch(job.created_at),
        started_at=None if job.started_at is None else from_epoch(job.started_at),
        finished_at=None if job.finished_at is None else from_epoch(job.finished_at),
        detail=job.detail,
    )


def _id(request: web.Request) -> str:
    text = request.match_info["id"]
    if not _ID.fullmatch(text):
        raise InvalidRequest(
            "a batch's id is 32 hexadecimal digits", field="id", remedy="use the `id` of an answer"
        )
    return text


def _form(request: web.Request) -> Form:
    """Return the form of results that `?format=` or else `Accept` names; NDJSON if neither does."""
    asked = request.query.get("format")
    for form in get_args(Form):
        if asked == form:
            return form  # type: ignore[no-any-return] # one of the literals
    if asked is not None:
        raise InvalidRequest("there is no such format", field="format", remedy=f"use {', '.join(get_args(Form))}")
    accept = request.headers.get("Accept", "")
    return next((form for name, form in MEDIA_TYPES.items() if name in accept), "ndjson")


def _page(query: Mapping[str, str]) -> tuple[str | None, int]:
    unknown = sorted(set(query) - {"cursor", "limit"})
    cursor, limit = query.get("cursor"), query.get("limit", str(MAX_PAGE))
    field = unknown[0][:40] if unknown else None
    if cursor is not None and not _ID.fullmatch(cursor):
        field = "cursor"
    if not re.fullmatch(r"[0-9]{1,3}", limit, re.ASCII) or not 1 <= int(limit) <= MAX_PAGE:
        field = "limit"
    if field is not None:
        raise InvalidRequest(
            f"{field} is not as documented",
            field=field,
            remedy=f"limit is a number from 1 to {MAX_PAGE}, cursor the next_cursor of the page before",
        )
    return cursor, int(limit)


def _json(message: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=_encoder.encode(message), content_type="application/json", headers=headers
    )
