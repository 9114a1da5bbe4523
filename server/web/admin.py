"""The admin listener: an index, metrics of every process, liveness, readiness, and the API's documentation."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

SCRAPE_DEADLINE_S = 1.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>certmill: for operators</title>
<h1>certmill: for operators</h1>
<ul>
<li><a href="/readyz">/readyz</a>: can certificates be issued now, and if not, why
<li><a href="/healthz">/healthz</a>: does the authority run
<li><a href="/metrics">/metrics</a>: of every process, for Prometheus
<li><a href="/docs">/docs</a>: the API (also <a href="/openapi.json">/openapi.json</a>)
</ul>
</html>
"""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls can succeed now; `reasons` says why not."""

    ready: bool
    reasons: list[str]


class AdminApi:
    """Handlers of the admin listener. `workers` maps a process name to its metrics socket."""

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        workers: Mapping[str, Path],
        readiness: Callable[[], Readiness],
    ) -> None:
        self._registry = registry
        self._workers = workers
        self._readiness = readiness

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/", self.index),
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.health),
            web.get("/readyz", self.ready),
        ]

    async def index(self, _request: web.Request) -> web.Response:
        """Say what is here."""
        return web.Response(text=_INDEX, content_type="text/html")

    async def metrics(self, _request: web.Request) -> web.Response:
        """Return the authority's metrics and those of every OCSP worker, told apart by `process`."""
        texts = await self._scrape()
        merged = CollectorRegistry(auto_describe=False)
        merged.register(_Merged(texts))
        body = generate_latest(self._registry) + generate_latest(merged)
        return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})

    async def health(self, _request: web.Request) -> web.Response:
        """Say that the process runs its loop."""
        return web.Response(text="ok\n")

    async def ready(self, _request: web.Request) -> web.Response:
        """Say whether certificates can be issued now, and why not."""
        readiness = self._readiness()
        return web.Response(
            status=200 if readiness.ready else 503,
            body=msgspec.json.encode(readiness) + b"\n",
            content_type="application/json",
        )

    async def _scrape(self) -> dict[str, str | None]:
        texts: dict[str, str | None] = {}
        async with asyncio.TaskGroup() as tasks:
            for name, path in self._workers.items():
                tasks.create_task(_scrape_one(name, path, texts))
        return texts


async def _scrape_one(name: str, path: Path, texts: dict[str, str | None]) -> None:
    """Fetch one worker's metrics; None if it does not answer (it may be restarting)."""
    texts[name] = None
    try:
        async with (
            asyncio.timeout(SCRAPE_DEADLINE_S),
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.get("http://worker/metrics") as response,
        ):
            if response.status == 200:  # noqa: PLR2004 - OK
                texts[name] = await response.text()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return


class _Merged(Collector):
    """Joins the families of several expositions, adding the label `process` to every sample."""

    def __init__(self, texts: Mapping[str, str | None]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(
            "certmill_process_up", "Whether the process answers the scrape of its metrics", labels=["process"]
        )
        families: dict[str, Metric] = {}
        for process, text in self._texts.items():
            up.add_metric([process], 0 if text is None else 1)
            for family in _families(text or ""):
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    joined.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
        return [up, *families.values()]


def _families(text: str) -> Iterator[Metric]:
    yield from text_string_to_metric_families(text)
