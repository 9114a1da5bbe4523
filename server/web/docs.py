"""Serves the OpenAPI document and its readable form; both are made once, at the first request."""

import functools
from collections.abc import Sequence

import msgspec
from aiohttp import web

from pkix.profile import Profile
from server.web.docs_page import docs_page
from server.web.openapi import openapi_document
from server.web.problem import ALL_KINDS


class DocsApi:
    """`/openapi.json` and `/docs`. `profiles`: those that clients may ask for."""

    def __init__(self, *, version: str, profiles: Sequence[Profile] = ()) -> None:
        self._version = version
        self._profiles = profiles

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [web.get("/openapi.json", self.openapi), web.get("/docs", self.docs)]

    async def openapi(self, _request: web.Request) -> web.Response:
        """Return the OpenAPI 3.1 document."""
        return web.Response(body=self._documents[0], content_type="application/json")

    async def docs(self, _request: web.Request) -> web.Response:
        """Return the documentation for people."""
        return web.Response(text=self._documents[1], content_type="text/html")

    @functools.cached_property
    def _documents(self) -> tuple[bytes, str]:
        document = openapi_document(version=self._version, profiles=self._profiles)
        return msgspec.json.encode(document), docs_page(document, ALL_KINDS)
