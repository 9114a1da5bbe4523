"""An HTTPS server that answers as it is told, once for each answer: what certmill and the network do on bad days."""

import datetime as dt
import ipaddress
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True)
class Heard:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Say:
    """An answer. `cut`: the connection breaks off before the end of the body, or before anything if it is empty."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    chunked: bool = False


LOST = Say(cut=True)
Answer = Say | Callable[[Heard], Say]


class FakeApi:
    """Answers in turn from `answers`; what is not told is an error. `heard` keeps all requests."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "fake.pem", directory / "fake.key"
        _self_signed(self.certificate, self.key)
        self.answers: deque[Answer] = deque()
        self.heard: list[Heard] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def says(self, *answers: Answer) -> None:
        self.answers.extend(answers)


@contextmanager
def fake_api(directory: Path) -> Iterator[FakeApi]:
    """Serve for the block; client certificate and key are the server's own."""
    api = FakeApi(directory)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(api.certificate, api.key)
    tls.load_verify_locations(api.certificate)
    tls.verify_mode = ssl.CERT_REQUIRED
    with serving(tls, lambda heard: _next(api, heard)) as port:
        api.port = port
        yield api


@contextmanager
def serving(tls: ssl.SSLContext, answer: Callable[[Heard], Say]) -> Iterator[int]:
    """Serve `answer` over TLS on a free port for the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def setup(self) -> None:
            self.request = tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def answer(self) -> None:
            heard = Heard(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, _body(self))
            _send(self, answer(heard))

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # the end waits for them

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not trust us, or that has gone

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _next(api: FakeApi, heard: Heard) -> Say:
    api.heard.append(heard)
    answer = api.answers.popleft() if api.answers else Say(500)
    return answer if isinstance(answer, Say) else answer(heard)


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline(), 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


def _send(handler: BaseHTTPRequestHandler, say: Say) -> None:
    handler.close_connection = handler.close_connection or say.cut
    if say.cut and not say.body:
        return
    handler.send_response(say.status)
    for name, value in say.headers.items():
        handler.send_header(name, value)
    if say.chunked:
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(say.body), say.body) + (b"" if say.cut else b"0\r\n\r\n"))
    else:
        handler.send_header("Content-Length", str(len(say.body) + say.cut))
        handler.end_headers()
        handler.wfile.write(say.body)


def _self_signed(certificate: Path, key_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fake")])
    now = dt.datetime.now(dt.UTC)
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(loopback, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
