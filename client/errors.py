"""What can go wrong between a ministry system and certmill. Every error is a `CertmillError`."""

import msgspec

TEMPORARY = frozenset({429, 502, 503, 504})


class CertmillError(Exception):
    """Base of all errors here.

    `idempotency_key` is the key of the request that failed, if it had one: whatever the error says, the same
    request with the same key never makes a second certificate. `repeated`: an earlier attempt may have been heard.
    """

    idempotency_key: str | None = None
    repeated: bool = False


class CertmillUnreachable(CertmillError):
    """There was no whole answer before the deadline; nobody knows what became of the request. Repeat it."""


class CertmillUntrusted(CertmillError):
    """TLS failed: a certificate of ours or theirs is not accepted, or a file of ours cannot be used."""


class CertmillProtocolError(CertmillError):
    """The answer is none of certmill's: another server, or another version of the API."""


class ProblemDetails(msgspec.Struct, frozen=True):
    """The members of `application/problem+json` (RFC 9457) that certmill sends."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    field: str | None = None
    remedy: str | None = None
    instance: str = ""


class CertmillProblem(CertmillError):
    """certmill's refusal: its kind (`type`, `title`), what is wrong (`detail`, `field`), what to do (`remedy`).

    `retry_after_s` is how long certmill asks to wait, or None. `instance` is what its operators want to hear.
    """

    def __init__(self, status: int, body: bytes, retry_after_s: float | None = None) -> None:
        try:
            details = msgspec.json.decode(body, type=ProblemDetails)
        except (msgspec.DecodeError, UnicodeDecodeError):  # a gateway's
            details = ProblemDetails()
        self.details, self.status, self.retry_after_s = details, status, retry_after_s
        self.type, self.title = details.type, details.title or f"HTTP status {status}"
        self.detail = details.detail or self.title
        self.field, self.remedy, self.instance = details.field, details.remedy, details.instance
        super().__init__(f"{self.field}: {self.detail}" if self.field else self.detail)

    @property
    def temporary(self) -> bool:
        """Say whether the same request may succeed later. It was repeated until the deadline already."""
        return self.status in TEMPORARY
