"""Serves the OpenAPI document and its readable form; both are made once, at the first request."""

import functools

import msgspec
from aiohttp import web

from server.web.docs_page import docs_page
from server.web.openapi import openapi_document
from server.web.problem import ALL_KINDS


class DocsApi:
    """`/openapi.json` and `/docs`."""

    def __init__(self, *, version: str) -> None:
        self._version = version

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/openapi.json", self.openapi), web.get("/docs", self.docs)]

    async def openapi(self, _request: web.Request) -> web.Response:
        """Return the OpenAPI 3.1 document."""
        return web.Response(body=_documents(self._version)[0], content_type="application/json")

    async def docs(self, _request: web.Request) -> web.Response:
        """Return the documentation for people."""
        return web.Response(text=_documents(self._version)[1], content_type="text/html")


@functools.lru_cache(maxsize=1)
def _documents(version: str) -> tuple[bytes, str]:
    document = openapi_document(version=version)
    return msgspec.json.encode(document), docs_page(document, ALL_KINDS)
