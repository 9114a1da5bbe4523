"""A way to certmill's API on which answers get lost: each request is passed on, or not, as the plan says."""

import http.client
import json
import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.support.certmill import RunningCertmill
from tests.support.fake_api import LOST, Heard, Say, serving

Fate = Literal["through", "busy", "lost"]
_BUSY = {
    "type": "/docs#overloaded",
    "title": "Too many requests are waiting",
    "status": 503,
    "detail": "wait a moment",
}
_PASSED = ("content-type", "accept", "idempotency-key")


class RoughApi:
    """`heard` keeps all requests. Lost: certmill heard it and answered, and nobody hears that. After the plan: through."""

    def __init__(self, running: RunningCertmill, *plan: Fate) -> None:
        self._running, self._plan = running, deque(plan)
        self.heard: list[Heard] = []
        self.lost = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def keys(self) -> set[str]:
        return {one.headers["idempotency-key"] for one in self.heard}

    def answer(self, heard: Heard) -> Say:
        self.heard.append(heard)
        fate = self._plan.popleft() if self._plan else "through"
        if fate == "busy":
            headers = {"Retry-After": "0", "Content-Type": "application/problem+json"}
            return Say(http.client.SERVICE_UNAVAILABLE, json.dumps(_BUSY).encode(), headers)
        headers = {name: heard.headers[name] for name in _PASSED if name in heard.headers}
        reply = self._running.api(heard.method, heard.path, heard.body, headers)
        if fate == "lost":
            self.lost += 1
            return LOST
        return Say(reply.status, reply.body, {"Content-Type": reply.headers["content-type"]})


@contextmanager
def rough_api(running: RunningCertmill, *plan: Fate) -> Iterator[RoughApi]:
    """Serve for the block, with the API's own certificate; whoever calls must show one of our CA's."""
    api = RoughApi(running, *plan)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(running.home / "secrets/api-cert.pem", running.home / "secrets/api-key.pem")
    tls.load_verify_locations(running.home / "ca/root.pem")
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(tls, api.answer) as port:
        api.port = port
        yield api
