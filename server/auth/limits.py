"""What operators may write into a client's limits, parsed to what the table holds."""

import ipaddress
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from server.auth.permissions import ANY
from server.errors import InvalidRequest

UNLIMITED = "unlimited"
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_LONGEST = 64  # characters of O, serialNumber and organizationIdentifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits as an operator gives them; None: not given. An empty text among others means nothing."""

    profiles: Sequence[str] | None = None
    names: Sequence[str] | None = None
    organizations: Sequence[str] | None = None
    identifiers: Sequence[str] | None = None
    quota: str | None = None
    rate: str | None = None

    def columns(self, offered: Sequence[str]) -> dict[str, object]:
        """Return the columns that were given, checked; raises `InvalidRequest`. `offered`: profiles."""
        columns: dict[str, object] = {}
        for column, given, parse in (
            ("profiles", self.profiles, partial(_profile, [ANY, *offered])),
            ("names", self.names, _name),
            ("organizations", self.organizations, _organization),
            ("identifiers", self.identifiers, _identifier),
        ):
            if given is not None:
                columns[column] = sorted({parse(text) for text in given if text})
        if self.quota is not None:
            columns["yearly_quota"] = _number(self.quota, "--quota", smallest=0)
        if self.rate is not None:
            columns["rate_per_minute"] = _number(self.rate, "--rate", smallest=1)
        return columns


def _profile(offered: Sequence[str], text: str) -> str:
    if text not in offered:
        raise InvalidRequest(
            f"there is no profile {text[:64]!r}", field="--profile", remedy=f"use {', '.join(offered)}"
        )
    return text


def _name(text: str) -> str:
    if text == ANY:
        return text
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(text) or text.rpartition(".")[2].isdigit():
        raise InvalidRequest(
            f"{text[:80]!r} is no name that a client can be limited to",
            field="--name",
            remedy="a DNS name in lower case (itself and all below it), an IP address, or * for any name",
        )
    return text


def _organization(text: str) -> str:
    if text == ANY:
        return text
    if ANY in text or not _is_text(text):
        raise InvalidRequest(
            f"{text[:80]!r} is no organisation that a client can be limited to",
            field="--organization",
            remedy=f"the whole value of O, 1 to {_LONGEST} printable characters, or * alone for any",
        )
    return unicodedata.normalize("NFC", text)


def _identifier(text: str) -> str:
    if ANY in text[:-1] or not _is_text(text):
        raise InvalidRequest(
            f"{text[:80]!r} is no identifier that a client can be limited to",
            field="--identifier",
            remedy="a registration number or organizationIdentifier, or its beginning and *, as NTRLA-*",
        )
    return unicodedata.normalize("NFC", text)


def _is_text(text: str) -> bool:
    return text.isprintable() and text == text.strip() and len(text) <= _LONGEST


def _number(text: str, field: str, *, smallest: int) -> int | None:
    if text == UNLIMITED:
        return None
    if not _NUMBER.fullmatch(text) or int(text) < smallest:
        raise InvalidRequest(
            f"{text[:40]!r} is no limit", field=field, remedy=f"a number from {smallest} on, or {UNLIMITED}"
        )
    return int(text)
