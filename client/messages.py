"""What certmill answers. Fields that a later certmill adds are ignored."""

import datetime as dt
from typing import Literal

import msgspec

ResultFormat = Literal["ndjson", "csv", "zip"]
BatchAct = Literal["pause", "resume", "cancel"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class Certificate(Answer, frozen=True, kw_only=True):
    """A certificate and its status. `certificate` and `chain` are PEM; the root is not in the chain."""

    serial: str
    status: str
    profile: str
    subject: str
    dns_names: list[str]
    not_before: dt.datetime
    not_after: dt.datetime
    certificate: str
    chain: list[str]
    revoked_at: dt.datetime | None = None
    revocation_reason: str | None = None

    @property
    def pem(self) -> str:
        """The certificate and its issuer, as servers want them."""
        return self.certificate + "".join(self.chain)


class CertificateList(Answer, frozen=True, kw_only=True):
    """One page of certificates, newest first; `next_cursor` is None on the last."""

    certificates: list[Certificate]
    next_cursor: str | None = None


class Revocation(Answer, frozen=True, kw_only=True):
    """A durable revocation. `ocsp` is "pending" while no HSM answers; OCSP says "good" no more in either case."""

    serial: str
    revoked_at: dt.datetime
    reason: str
    ocsp: str


class Batch(Answer, frozen=True, kw_only=True):
    """A batch and how far it is, in rows. `checked`: rows of a dry run that would be issued."""

    id: str
    profile: str
    state: str
    dry_run: bool
    rows: int
    issued: int
    failed: int
    checked: int
    pending: int
    created_at: dt.datetime
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    detail: str | None = None

    @property
    def ended(self) -> bool:
        """Say whether nothing more will happen to it."""
        return self.state in {"done", "cancelled", "failed"}


class BatchList(Answer, frozen=True, kw_only=True):
    """One page of batches, newest first; `next_cursor` is None on the last."""

    batches: list[Batch]
    next_cursor: str | None = None


class RenewalWindow(Answer, frozen=True, kw_only=True):
    """When to renew: at a moment drawn by chance in it; at once where it lies in the past."""

    start: dt.datetime
    end: dt.datetime


class RenewalInfo(Answer, frozen=True, kw_only=True, rename="camel"):
    """When a certificate should be renewed (RFC 9773 §4.2); ask again every day or so, it may move."""

    suggested_window: RenewalWindow


class Usage(Answer, frozen=True, kw_only=True):
    """What the client used this year. `remaining` is None without a quota; the rest as in the API guide."""

    client: str
    year: int
    used: int
    remaining: int | None
    resets_at: dt.datetime
    live: int
    by_profile: dict[str, int]
    by_month: dict[str, int]
    limits: dict[str, object]
    expiring: dict[str, int]
    forecast: dict[str, object]
