"""Findings that do not stop a certificate, each with its reason: `exceptions.toml` beside this module."""

import hashlib
from collections.abc import Iterable
from importlib import resources
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from server.linting.findings import Finding, Severity

_Words = Annotated[str, Meta(min_length=20)]


class ExceptedFinding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finding that is right and nevertheless does not count.

    `profile` is a profile's name, or `*`. FATAL cannot be excepted: the linter has not finished then.
    """

    linter: Literal["pkix", "cabf-tls", "cabf-smime", "etsi"]
    code: str
    profile: str
    reason: _Words
    source: _Words

    def covers(self, finding: Finding, *, linter: str, profile: str) -> bool:
        """Say whether this exception is about that finding."""
        return (
            finding.severity is not Severity.FATAL
            and (self.linter, self.code) == (linter, finding.code)
            and self.profile in (profile, "*")
        )


class Exceptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table of documented exceptions."""

    exception: tuple[ExceptedFinding, ...] = ()

    def stopping(self, findings: Iterable[Finding], *, linter: str, profile: str) -> list[Finding]:
        """Return the findings of WARNING or worse that no exception covers."""
        return [
            finding
            for finding in findings
            if finding.severity <= Severity.WARNING
            and not any(e.covers(finding, linter=linter, profile=profile) for e in self.exception)
        ]

    @property
    def digest(self) -> str:
        """Name this table: shapes that were linted under another one are linted again."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:8]


def documented_exceptions() -> Exceptions:
    """Read the table that certmill comes with."""
    return parse_exceptions(resources.files(__package__).joinpath("exceptions.toml").read_bytes())


def parse_exceptions(toml: bytes) -> Exceptions:
    """Parse a table; raises `msgspec.ValidationError`."""
    return msgspec.toml.decode(toml, type=Exceptions)
