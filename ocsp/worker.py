"""One OCSP worker: a process without keys and without database, read-only on the response store.

It does not wait for anything: without a store it says tryLater until there is one. Several workers share the
port (SO_REUSEPORT), so any of them may be restarted at any time.
"""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from structlog.typing import FilteringBoundLogger

from ocsp.answers import Answers
from ocsp.deadlines import Deadlines
from ocsp.errors import ListenError
from ocsp.forward import Forwarder
from ocsp.metrics import WorkerMetrics
from ocsp.protocol import Listener
from ocsp.repository import Repository
from ocsp.responder import MAX_REQUEST_BYTES, Responder
from ocsp.slow_writer import write_slowly
from ocsp.wire import Scanner

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BACKLOG = 4096
TICK_S = 1.0
DRAIN_S = 10.0
FILE_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Where a worker listens and what it reads."""

    host: str
    port: int
    store_path: Path
    public_dir: Path
    authority_socket: Path
    metrics_socket: Path
    prefix: str = "/ocsp"
    max_connections: int = 10_000
    max_age_cap_s: int = 3600
    deadlines: Deadlines = field(default_factory=Deadlines)


def _nothing() -> None:
    """Tell nobody."""


def run(
    config: WorkerConfig,
    logger: FilteringBoundLogger,
    *,
    sockets: Sequence[socket.socket] = (),
    on_ready: Callable[[], None] = _nothing,
    on_stopping: Callable[[], None] = _nothing,
) -> None:
    """Serve until SIGTERM or SIGINT; raises `ListenError`.

    `sockets`: they listen already, and are ours from now on; without any, `config.host` and `port` say where.
    `on_stopping` is called when they are closed and answers are still being sent. Neither callback may block.
    """
    config.metrics_socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    config.metrics_socket.unlink(missing_ok=True)
    uvloop.run(serve(config, logger, sockets, on_ready, on_stopping))


async def serve(
    config: WorkerConfig,
    logger: FilteringBoundLogger,
    sockets: Sequence[socket.socket],
    on_ready: Callable[[], None],
    on_stopping: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; raises `ListenError`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for ending in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(ending, stop.set)
    loop.set_default_executor(ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files"))
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    answers = Answers(config.store_path, max_age_cap_s=config.max_age_cap_s)
    answers.tick()
    forwarder = Forwarder(config.authority_socket)
    async with AsyncExitStack() as stack:
        stack.callback(answers.close)
        stack.push_async_callback(forwarder.close)
        slow = await _slow_path(stack, config, answers, forwarder, metrics)
        listener = Listener(
            answers=answers,
            scanner=Scanner(config.prefix),
            successor=slow,
            max_connections=config.max_connections,
            deadlines=config.deadlines,
        )
        metrics.watch(answers=answers, connections=listener, forwarder=forwarder)
        await _serve_metrics(stack, registry, config.metrics_socket)
        servers = await _listen(config, sockets, listener)
        logger.info("ocsp worker ready", public=f"{config.host}:{config.port}", store=answers.open)
        on_ready()
        while not stop.is_set():
            answers.tick()
            listener.sweep()
            try:
                async with asyncio.timeout(TICK_S):
                    await stop.wait()
            except TimeoutError:
                continue
        for server in servers:
            server.close()
        on_stopping()
        listener.drain()
    logger.info("ocsp worker stops")


async def _slow_path(
    stack: AsyncExitStack, config: WorkerConfig, answers: Answers, forwarder: Forwarder, metrics: WorkerMetrics
) -> web.Server:
    app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_plain_errors])
    responder = Responder(
        prefix=config.prefix,
        answers=answers,
        forwarder=forwarder,
        metrics=metrics,
        body_deadline_s=config.deadlines.body_s,
    )
    app.add_routes([*responder.routes(), *Repository(config.public_dir).routes()])
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=DRAIN_S, keepalive_timeout=config.deadlines.idle_s
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    assert runner.server is not None  # noqa: S101 - set by setup()
    write_slowly(runner.server)
    return runner.server


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send HTTP errors as plain text that no cache keeps."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        error.headers["Cache-Control"] = "no-store"
        raise


async def _serve_metrics(stack: AsyncExitStack, registry: CollectorRegistry, path: Path) -> None:
    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.UnixSite(runner, str(path)).start()


async def _listen(
    config: WorkerConfig, sockets: Sequence[socket.socket], listener: Listener
) -> list[asyncio.Server]:
    loop = asyncio.get_running_loop()
    if sockets:
        return [await loop.create_server(listener.connect, sock=one, backlog=BACKLOG) for one in sockets]
    try:
        return [
            await loop.create_server(listener.connect, config.host, config.port, reuse_port=True, backlog=BACKLOG)
        ]
    except OSError as error:
        raise ListenError(
            f"setting listen.public: cannot listen on {config.host}:{config.port}: {error.strerror or error}; "
            "stop what listens there, or choose another address"
        ) from None
