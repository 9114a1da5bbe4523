"""What all calls share: connection settings, JSON there and back."""

import base64
import ssl
import uuid
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from client.errors import CertmillError, CertmillProtocolError, CertmillUntrusted
from client.messages import Answer
from client.transport import Request, Tell, Transport

File = str | PathLike[str]
T = TypeVar("T", bound=Answer)
JSON = "application/json"
_WORDS = {  # what OpenSSL says
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "PEM lib": "one of them holds no certificate, or no private key, in PEM",
    "NO_CERTIFICATE_OR_CRL_FOUND": "it holds no certificate in PEM",
}


def _silent(_error: CertmillError, _pause_s: float) -> None:
    """Tell nobody that an attempt failed."""


class Calls:
    """A ministry system's connection to one certmill. Threads may share it; `close` it, or use `with`.

    `certificate` and `key` are the PEM files that the CA's operators know this client by, `ca` the PEM file of the
    root that the API's own certificate comes from. `timeout_s` is how long one attempt may be silent, `deadline_s`
    how long a call goes on trying. `tell` hears of each attempt that failed, and the pause until the next one.
    Raises ValueError for a wrong `url` and `CertmillUntrusted` for files that cannot be used.
    """

    def __init__(
        self,
        url: str,
        certificate: File,
        key: File,
        ca: File,
        *,
        deadline_s: float = 60.0,
        timeout_s: float = 35.0,
        tell: Tell = _silent,
    ) -> None:
        if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
            raise ValueError(f"{url!r} is no URL of certmill's API; for example https://pki.example.gov:8443")
        self.transport = Transport(url, _tls(certificate, key, ca), timeout_s=timeout_s, tell=tell)
        self.deadline_s = deadline_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.transport.close()

    def _get(self, url: str, answer: type[T]) -> T:
        request = Request(method="GET", path=url, headers={"Accept": JSON})
        return decoded(self.transport.call(request, deadline_s=self.deadline_s), answer)

    def _post(self, url: str, body: Mapping[str, object], answer: type[T], *, key: str | None = None) -> T:
        headers = {"Accept": JSON, "Content-Type": JSON, **({"Idempotency-Key": key} if key else {})}
        request = Request(method="POST", path=url, headers=headers, body=msgspec.json.encode(body))
        return decoded(self.transport.call(request, deadline_s=self.deadline_s), answer)


def decoded(body: bytes, answer: type[T]) -> T:
    """Parse an answer; raises `CertmillProtocolError`."""
    try:
        return msgspec.json.decode(body, type=answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CertmillProtocolError(f"not the answer of a certmill: {error}") from None


def path(*parts: str, **query: str | int | None) -> str:
    """Write a path of the API; what is None is left out of the query."""
    text = urlencode({name: value for name, value in query.items() if value is not None})
    return "/v1/" + "/".join(quote(part, safe="") for part in parts) + (f"?{text}" if text else "")


def pem(csr: str | bytes) -> str:
    """Return a PKCS #10 request (PEM or DER) as PEM."""
    if isinstance(csr, str) or csr.lstrip().startswith(b"-----"):
        return csr if isinstance(csr, str) else csr.decode("ascii")
    text = base64.encodebytes(csr).decode("ascii")
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"


def new_key() -> str:
    """Make an idempotency key."""
    return str(uuid.uuid4())


def _tls(certificate: File, key: File, ca: File) -> ssl.SSLContext:
    file = fspath(ca)
    try:
        context = ssl.create_default_context(cafile=file)
        for file in (fspath(certificate), fspath(key)):
            Path(file).read_bytes()  # else nobody is told which of the two is not there
        file = f"{fspath(certificate)} with {fspath(key)}"
        context.load_cert_chain(fspath(certificate), fspath(key), password=_no_password)
    except ssl.SSLError as error:
        words = next((words for sign, words in _WORDS.items() if sign in str(error)), error)
        raise CertmillUntrusted(f"{file}: cannot be used: {words}") from None
    except OSError as error:
        raise CertmillUntrusted(f"{file}: cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise CertmillUntrusted(f"{file}: cannot be used: {error}") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not, readable by its owner alone")
