"""The authority process: listeners, background loops, readiness. The only writer of database and store."""

import asyncio
import contextlib
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from server import __version__
from server.app import Parts, open_parts, renew_responder
from server.auth.rate import RateLimiter
from server.batches.service import Batches
from server.clock import utc_now
from server.config import Config, default_toml
from server.enrol.batches import BatchApi
from server.enrol.client_rest import ClientApi
from server.enrol.rest import RestApi
from server.errors import ServerError
from server.home import Home, exclusive, write_file
from server.issuance.catalogue import Catalogue
from server.keys.hierarchy import ISSUING, OCSP
from server.keys.known_ca import require_known_ca
from server.keys.token import prepare_token
from server.milestones import Milestones, unwatched
from server.notify import notify
from server.renewal.service import Renewals
from server.storage.migrate import upgrade
from server.storage.place import place_of
from server.usage.gauges import UsageGauges
from server.usage.report import UsageReports
from server.web.admin import AdminApi, Readiness
from server.web.docs import DocsApi
from server.web.listeners import application, listening, tls_context
from server.web.middleware import observe
from server.web.ocsp_signing import OcspSigningApi
from signer_pool.errors import SignerPoolError
from signer_pool.lane_config import LaneConfig

MAINTENANCE_INTERVAL_S = 3600.0
_ADMIN_BODY_BYTES = 16 * 1024


def prepare_home(config: Config, logger: FilteringBoundLogger, pins: Mapping[str, str]) -> list[LaneConfig]:
    """Make directories, settings file, token and database schema where they are missing. Blocking.

    `pins`: of the tokens that the settings name, by token name.
    """
    home = Home(config.home)
    home.create()
    with exclusive(home):
        if not home.settings.exists():
            write_file(home.settings, default_toml().encode(), mode=0o600)
        require_known_ca(home, place_of(config))
        lanes = prepare_token(config, home, logger, pins)
        upgrade(place_of(config))
    return lanes


async def initialise(config: Config, lanes: list[LaneConfig], logger: FilteringBoundLogger) -> None:
    """Make everything that serving needs, then stop: `certmill init`."""
    async with open_parts(config, lanes, clock=utc_now, logger=logger) as parts:
        for publisher in parts.crl_publishers:
            if await publisher.due_at() <= parts.clock():  # opening has tried: let its error be seen
                await publisher.publish()


async def run_authority(
    config: Config,
    lanes: list[LaneConfig],
    logger: FilteringBoundLogger,
    environ: Mapping[str, str],
    reached: Milestones = unwatched,
) -> None:
    """Serve until SIGTERM or SIGINT; raises what opening raises."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        opened = open_parts(config, lanes, clock=utc_now, logger=logger, reached=reached)
        parts = await stack.enter_async_context(opened)
        tls = await _tls(parts)
        loops = await stack.enter_async_context(_background(parts, tls))
        await _listen(stack, parts, tls, loops)
        logger.info("authority ready", api=str(config.listen.api), admin=str(config.listen.admin))
        notify(environ, "READY=1")
        await _until_stopped(stop, loops)
        notify(environ, "STOPPING=1")
        logger.info("authority stops")


async def _tls(parts: Parts) -> ssl.SSLContext:
    chain, key = await parts.own.ensure_api(parts.config.listen.api_names)
    trusted = parts.hierarchy.issuing.certificate_pem + parts.hierarchy.root.certificate_pem
    return tls_context(chain=chain, key=key, trusted_pem=trusted)


async def _listen(stack: AsyncExitStack, parts: Parts, tls: ssl.SSLContext, loops: "Background") -> None:
    listen = parts.config.listen
    docs = DocsApi(version=__version__, profiles=parts.profiles.offered)

    def around(listener: str) -> Any:  # noqa: ANN401 - aiohttp's middleware type
        return observe(listener, deadline_s=listen.request_deadline_s, metrics=parts.metrics, logger=parts.logger)

    signing = OcspSigningApi(issuer=parts.hierarchy.issuing, publisher=parts.publisher)
    internal = application(signing.routes(), around("internal"), max_body_bytes=_ADMIN_BODY_BYTES)
    await stack.enter_async_context(listening(internal, setting="home", address=parts.home.authority_socket))
    rest = RestApi(
        issuer=parts.hierarchy.issuing,
        registry=parts.clients,
        limiter=RateLimiter(time.monotonic, parts.metrics),
        issuance=parts.issuance,
        profiles=parts.profiles,
        revocation=parts.revocation,
        catalogue=Catalogue(parts.database, ISSUING),
        clock=parts.clock,
        body_deadline_s=listen.body_deadline_s,
    )
    mine = ClientApi(
        rest=rest,
        usage=UsageReports(parts.database, parts.clock),
        renewals=Renewals(
            catalogue=rest.catalogue,
            issuance=parts.issuance,
            profiles=parts.profiles,
            settings=parts.config.renewal,
        ),
    )
    bulk = BatchApi(
        registry=parts.clients,
        batches=parts.batches,
        body_deadline_s=parts.config.batches.body_deadline_s,
        patience_s=listen.body_deadline_s,
    )
    routes = [*rest.routes(), *mine.routes(), *bulk.routes(), *docs.routes()]
    api = application(routes, around("api"), max_body_bytes=listen.max_body_bytes)
    api.on_shutdown.append(_let_followers_go(parts.batches))
    await stack.enter_async_context(listening(api, setting="listen.api", address=listen.api, tls=tls))
    admin = AdminApi(
        registry=parts.registry,
        workers=_worker_sockets(parts),
        readiness=lambda: _readiness(parts, loops),
    )
    app = application([*admin.routes(), *docs.routes()], around("admin"), max_body_bytes=_ADMIN_BODY_BYTES)
    await stack.enter_async_context(listening(app, setting="listen.admin", address=listen.admin))


def _let_followers_go(batches: Batches) -> Callable[[web.Application], Awaitable[None]]:
    async def close(_app: web.Application) -> None:
        batches.close()

    return close


def _worker_sockets(parts: Parts) -> dict[str, Path]:
    return {f"ocsp-{n}": parts.home.worker_metrics_socket(n) for n in range(parts.config.ocsp.workers)}


def _readiness(parts: Parts, loops: "Background") -> Readiness:
    health = parts.pool.health()
    storage = parts.storage.reasons()
    reasons = [*storage, *health.reasons()]
    if health.alive == 0:
        return Readiness(ready=False, reasons=["no signer lane is ready", *reasons])
    if not loops.running:
        return Readiness(ready=False, reasons=["a background loop has ended", *reasons])
    return Readiness(ready=not storage, reasons=reasons)


class Background:
    """The loops beside the API. If one ends by a defect, the process ends: the supervisor starts it anew."""

    def __init__(self, parts: Parts, tls: ssl.SSLContext) -> None:
        self._parts = parts
        self._tls = tls
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()

    @property
    def running(self) -> bool:
        """Say whether every loop runs."""
        return not self.ended.is_set()

    async def __aenter__(self) -> "Background":
        await self._group.__aenter__()
        parts = self._parts
        loops = [parts.refresher.run(), parts.reconciler.run(), parts.commitments.run(), self._maintain()]
        loops += [parts.presence.run(), parts.storage.run(), parts.issuance.run()]
        loops.append(UsageGauges(parts.database, parts.clock, parts.metrics, parts.logger).run())
        loops += [parts.batches.runner.run(), parts.batches.tidy()]
        for loop in [*loops, *(publisher.run() for publisher in parts.crl_publishers)]:
            task = self._group.create_task(loop)
            task.add_done_callback(lambda _task: self.ended.set())
            self._tasks.append(task)
        return self

    async def __aexit__(self, *details: Any) -> None:  # noqa: ANN401
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(*details)

    async def _maintain(self) -> None:
        """Renew certmill's own certificates before they end."""
        parts = self._parts
        while True:
            try:
                await parts.pool.calibrate([ISSUING, OCSP])  # the root key signs nothing that need not be
                await renew_responder(parts)
                chain, key = await parts.own.ensure_api(parts.config.listen.api_names)
                self._tls.load_cert_chain(chain, key)
            except (ServerError, SignerPoolError, OSError) as error:
                parts.logger.error("own certificates not renewed, will try again", error=str(error))
            await asyncio.sleep(MAINTENANCE_INTERVAL_S)


def _background(parts: Parts, tls: ssl.SSLContext) -> Background:
    return Background(parts, tls)


async def _until_stopped(stop: asyncio.Event, loops: Background) -> None:
    waits = {asyncio.ensure_future(stop.wait()), asyncio.ensure_future(loops.ended.wait())}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await wait
