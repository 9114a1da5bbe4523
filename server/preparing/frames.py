"""What the authority and a preparing process say to each other."""

import datetime as dt

import msgspec

from pkix.asked import AskedNames
from server.auth.clients import Client


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """The first frame: whose certificates are prepared, and how far notBefore lies before now."""

    issuer_der: bytes
    url: str
    label: str
    backdate_s: float


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """One order; `profile` and `client` are places in the frame's tables."""

    profile: int
    client: int
    csr: bytes
    lifetime_s: int | None
    asked: AskedNames | None


class Prepare(msgspec.Struct, frozen=True, array_like=True):
    """Asks to prepare some orders. Profiles are the texts of their versions."""

    now: dt.datetime
    profiles: list[str]
    clients: list[Client]
    orders: list[Wanted]


class Made(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A prepared certificate; times in seconds since 1970. `serial` is the integer, big-endian.

    `profile` and `fingerprint` are those of the order that it was made for.
    """

    profile: str
    fingerprint: bytes
    serial: bytes
    tbs: bytes
    tbs_sha256: bytes
    spki_sha256: bytes
    subject: str
    not_before: int
    not_after: int
    csr_der: bytes


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An order that was refused: the class of its error and what that says; `fingerprint` as in `Made`."""

    kind: str
    detail: str
    field: str | None = None
    remedy: str | None = None
    limit: str | None = None
    fingerprint: bytes = b""


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `Prepare`, in its order."""

    results: list[Made | Refused]
