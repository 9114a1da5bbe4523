"""The servers that `bench_ocsp` compares: how each is configured and started, with the same bodies."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

_WORKER = """
import sys
from pathlib import Path
import structlog
from ocsp.worker import WorkerConfig, run
home = Path(sys.argv[1])
run(WorkerConfig(host="127.0.0.1", port=int(sys.argv[2]), store_path=home / "store", public_dir=home / "public",
                 authority_socket=home / "none.sock", metrics_socket=home / "run" / "metrics.sock"),
    structlog.get_logger())
"""

_AIOHTTP = """
import json, sys
from pathlib import Path
import uvloop
from aiohttp import web
bodies = [bytes.fromhex(text) for text in json.loads(Path(sys.argv[1]).read_text())]
turn = 0
async def answer(request):
    global turn
    turn = (turn + 1) % len(bodies)
    return web.Response(body=bodies[turn], content_type="application/ocsp-response",
                        headers={"Cache-Control": "max-age=3600, public, no-transform, must-revalidate"})
app = web.Application()
app.router.add_get("/ocsp/{request:.*}", answer)
uvloop.install()
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=None, print=None)
"""

_NGINX = """
worker_processes 1;
daemon off;
pid {directory}/{name}.pid;
error_log {directory}/{name}.error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; keepalive_timeout 600;
  open_file_cache max=20000 inactive=600s; open_file_cache_valid 600s;
  types {{ }} default_type application/ocsp-response;
  client_body_temp_path {directory}/{name}.body; proxy_temp_path {directory}/{name}.proxy;
  fastcgi_temp_path {directory}/{name}.fastcgi; uwsgi_temp_path {directory}/{name}.uwsgi;
  scgi_temp_path {directory}/{name}.scgi;
  server {{ listen 127.0.0.1:{port} backlog=4096;
    add_header Cache-Control "max-age=3600, public, no-transform, must-revalidate";
    {body}
  }}
}}
"""


def worker_command(directory: Path, port: int) -> list[str]:
    """Our worker, as the supervisor starts it, on the benchmark's store."""
    return [sys.executable, "-c", _WORKER, str(directory), str(port)]


def aiohttp_command(directory: Path, port: int, bodies: Sequence[bytes]) -> list[str]:
    """A plain aiohttp handler on uvloop that returns the same bodies in turn."""
    file = directory / "bodies.json"
    file.write_text(json.dumps([body.hex() for body in bodies]), "utf-8")
    return [sys.executable, "-c", _AIOHTTP, str(file), str(port)]


def nginx_files_config(directory: Path, port: int, paths: Sequence[str], bodies: Sequence[bytes]) -> list[str]:
    """Nginx serving each body as a file under the very path that is asked for."""
    root = directory / "files"
    for path, body in zip(paths, bodies, strict=True):
        # nginx looks for the decoded path; a slash in the base64 makes a directory.
        file = root / unquote(path).lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
    return _nginx(directory, "static", port, f"root {root}; merge_slashes off;")


def nginx_return_config(directory: Path, port: int, body: bytes) -> list[str]:
    """Nginx returning one constant text as long as the body (a configuration cannot hold arbitrary octets)."""
    return _nginx(directory, "return", port, f'location / {{ return 200 "{"x" * len(body)}"; }}')


def _nginx(directory: Path, name: str, port: int, body: str) -> list[str]:
    config = directory / f"{name}.conf"
    config.write_text(_NGINX.format(directory=directory, name=name, port=port, body=body), "utf-8")
    return ["/usr/sbin/nginx", "-c", str(config), "-e", str(directory / f"{name}.start.log")]
