"""The repository: CRLs and CA certificates as files, with caching (RFC 5280 §4.2.1.13, RFC 2585)."""

import asyncio
from pathlib import Path

from aiohttp import web

CRL_MAX_AGE_S = 300
CERTIFICATE_MAX_AGE_S = 86_400
_TYPES = {
    ".crl": ("application/pkix-crl", CRL_MAX_AGE_S),
    ".cer": ("application/pkix-cert", CERTIFICATE_MAX_AGE_S),
    ".pem": ("application/x-pem-file", CERTIFICATE_MAX_AGE_S),
}
_INDEX = """certmill: certificate status and CA certificates

/ocsp               OCSP responder (RFC 6960): GET and POST
/ca/root.cer        root CA certificate (DER; also .pem)
/ca/issuing.cer     issuing CA certificate (DER; also .pem)
/crl/issuing.crl    certificate revocation list of the issuing CA
/crl/root.crl       certificate revocation list of the root CA
"""


class Repository:
    """Serves files of two flat directories; a name never leaves them.

    Files are read in the loop's default executor, which is aiohttp's choice: the worker bounds it.
    """

    def __init__(self, public_dir: Path) -> None:
        self._directories = {"crl": public_dir / "crl", "ca": public_dir / "ca"}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        name = r"{name:[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(?:crl|cer|pem)}"
        return [
            web.get("/", self.index),
            web.get("/crl/" + name, self.file),
            web.get("/ca/" + name, self.file),
        ]

    async def index(self, _request: web.Request) -> web.Response:
        """Say what is here."""
        return web.Response(text=_INDEX)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Return a file with ETag, Last-Modified, ranges and 304 (aiohttp's), type and lifetime (ours)."""
        name = request.match_info["name"]
        directory = self._directories[request.path.split("/")[1]]
        path = directory / name
        if not await asyncio.get_running_loop().run_in_executor(None, path.is_file):
            raise web.HTTPNotFound(text="no such file\n", headers={"Cache-Control": "no-store"})
        media_type, max_age = _TYPES[path.suffix]
        headers = {"Content-Type": media_type, "Cache-Control": f"public, max-age={max_age}, must-revalidate"}
        return web.FileResponse(path, headers=headers)
