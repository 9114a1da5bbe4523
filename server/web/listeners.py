"""Opens the listeners: API (TLS, client certificate required), admin, and the socket for OCSP workers."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from server.config import Address
from server.errors import ConfigError

_SHUTDOWN_S = 10.0


def tls_context(*, chain: Path, key: Path, trusted_pem: str) -> ssl.SSLContext:
    """Make the API's TLS context: TLS 1.2 or newer, a client certificate of this CA required."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted_pem)
    context.load_cert_chain(chain, key)
    return context


def application(routes: Sequence[web.RouteDef], middleware: Any, *, max_body_bytes: int) -> web.Application:  # noqa: ANN401
    """Make an application with our middleware around its routes."""
    app = web.Application(middlewares=[middleware], client_max_size=max_body_bytes)
    app.add_routes(routes)
    return app


@asynccontextmanager
async def listening(
    app: web.Application, *, setting: str, address: Address | Path, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serve `app` while inside; raises `ConfigError` naming `setting` if the address cannot be had."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S, keepalive_timeout=75)
    await runner.setup()
    try:
        site: web.BaseSite
        if isinstance(address, Path):
            site = web.UnixSite(runner, str(address))
        else:
            site = web.TCPSite(runner, address.host, address.port, ssl_context=tls, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"setting {setting}: cannot listen on {address}: {error.strerror or error}; "
                "stop what listens there, or choose another address"
            ) from None
        yield
    finally:
        await runner.cleanup()
