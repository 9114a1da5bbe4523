"""A row of a batch: from what a reader found, through the database, to an order's parts.

What is wrong with a row's values fails that row, and is told in its result. What is wrong with the shape of the
input (no JSON, a member or column that nobody knows) breaks the batch: it says that sender and certmill do not
mean the same, and is told at once.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from pkix.asked import AskedNames
from pkix.attributes import BY_NAME
from pkix.errors import MalformedCsr
from pkix.profile import Profile
from server.enrol.messages import Problem
from server.errors import BrokenBatch, InvalidRequest, RequestRefused
from server.web.problem import problem_of

MAX_REFERENCE = 128
MAX_ROW_BYTES = 128 * 1024
"""Of one row, as sent; also the bound of the csv module for a cell."""

Text = Annotated[str, Meta(max_length=1024)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=200)]


class RowNames(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Subject alternative names that are given beside the CSR."""

    dns: Texts = ()
    ip: Texts = ()
    email: Texts = ()
    uri: Texts = ()


class RowRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One row of a batch: a request for one certificate."""

    csr: Annotated[
        str, Meta(min_length=1, max_length=65536, description="PKCS #10 request (RFC 2986): PEM, or DER in base64")
    ]
    reference: (
        Annotated[str, Meta(max_length=MAX_REFERENCE, description="Yours; given back with the result")] | None
    ) = None
    subject: Annotated[
        dict[str, Text | Annotated[tuple[Text, ...], Meta(max_length=10)]],
        Meta(max_length=32, description="Subject attributes by their RFC 4514 names, beside the CSR"),
    ] = {}
    names: RowNames = RowNames()
    profile: (
        Annotated[str, Meta(max_length=80, description="In place of the batch's; name of a profile")] | None
    ) = None
    validity_days: (
        Annotated[int, Meta(ge=1, le=3660, description="Shortens the profile's validity; days")] | None
    ) = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """A row as the database takes it; `problem`: it has failed already."""

    number: int
    reference: str | None
    request: bytes
    problem: dict[str, Any] | None = None


_MEMBERS = frozenset(RowRequest.__struct_fields__)
_PLAIN_COLUMNS = ("reference", "csr", "profile", "validity_days")
_NAME_COLUMNS = RowNames.__struct_fields__
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RowRequest)


def columns() -> dict[str, str]:
    """Return every column of a CSV by its name in lower case."""
    known = (*_PLAIN_COLUMNS, *_NAME_COLUMNS, *BY_NAME)
    return {name.lower(): name for name in known}


def from_cells(header: list[str], cells: list[str]) -> dict[str, Any]:
    """Return the row of a CSV in the form of a JSON row; empty cells are as if they were not there."""
    row: dict[str, Any] = {}
    for column, cell in zip(header, cells, strict=True):
        value = cell.strip()
        if not value:
            continue
        if column in _PLAIN_COLUMNS:
            row[column] = value
        elif column in _NAME_COLUMNS:
            row.setdefault("names", {})[column] = value.split()
        else:
            row.setdefault("subject", {})[column] = value
    return row


class RowChecker:
    """Checks rows as they arrive and freezes their profile versions."""

    def __init__(
        self, *, named: Callable[[str], Profile], request_id: str, validity_days: int | None, text: bool
    ) -> None:
        """`named` finds the present version of a profile; `text`: numbers are written as text (CSV)."""
        self._named = named
        self._request_id = request_id
        self._validity_days = validity_days
        self._strict = not text
        self._identities: dict[str, str] = {}

    def check(self, number: int, row: Mapping[str, Any]) -> StoredRow:
        """Return the row as it is kept; raises `BrokenBatch` for a member that nobody knows."""
        unknown = next((name for name in row if name not in _MEMBERS), None)
        if unknown is not None:
            raise BrokenBatch(
                f"row {number}: there is no member {unknown[:80]!r}",
                field=unknown[:80],
                remedy=f"a row has: {', '.join(sorted(_MEMBERS))}",
            )
        reference = _printable(row.get("reference"))
        try:
            request = self._request(row)
        except RequestRefused as error:
            problem = as_json(problem_of(error, self._request_id))
            return StoredRow(number=number, reference=reference, request=b"{}", problem=problem)
        return StoredRow(number=number, reference=reference, request=_encoder.encode(request))

    def _request(self, row: Mapping[str, Any]) -> RowRequest:
        try:
            request = msgspec.convert(row, RowRequest, strict=self._strict)
        except msgspec.ValidationError as error:
            reason, _, where = str(error).partition(" - at `$.")
            field = where.rstrip("`") or (match[1] if (match := re.search("field `(.*)`", reason)) else None)
            raise InvalidRequest(reason, field=field, remedy="see the schema RowRequest at /docs") from None
        if request.reference is not None and not request.reference.isprintable():
            raise InvalidRequest(
                "the reference has control characters", field="reference", remedy="use printable characters"
            )
        profile = None if request.profile is None else self._identity(request.profile)
        days = request.validity_days or self._validity_days
        return msgspec.structs.replace(request, profile=profile, validity_days=days)

    def _identity(self, name: str) -> str:
        identity = self._identities.get(name)
        if identity is None:
            identity = self._identities[name] = self._named(name).identity
        return identity


def decode_row(request: bytes) -> RowRequest:
    """Read a row back from the database."""
    return _decoder.decode(request)


def csr_bytes(text: str) -> bytes:
    """Return the CSR of a row, PEM or DER; raises `MalformedCsr`."""
    if "-----BEGIN" in text:
        return text.encode()
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise MalformedCsr(
            "the CSR is neither PEM nor base64",
            field="csr",
            remedy="send PKCS #10 (RFC 2986) as PEM, or its DER in base64, for example from `openssl req -new`",
        ) from None


def asked_names(request: RowRequest) -> AskedNames | None:
    """Return the names given beside the CSR, None if there are none."""
    names = request.names
    asked = AskedNames(
        subject=tuple(
            (name, value)
            for name, values in request.subject.items()
            for value in ([values] if isinstance(values, str) else values)
        ),
        dns_names=names.dns,
        ip_addresses=names.ip,
        emails=names.email,
        uris=names.uri,
    )
    return asked if asked.as_json else None


def as_json(problem: Problem) -> dict[str, Any]:
    """Return a problem as the database keeps it."""
    built = msgspec.to_builtins(problem)
    assert isinstance(built, dict)  # noqa: S101 - a struct is an object
    return built


def _printable(reference: object) -> str | None:
    """Return what can be given back of a reference that may be wrong."""
    if not isinstance(reference, str):
        return None
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in reference[:MAX_REFERENCE])
