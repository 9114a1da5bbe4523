"""What the authority and a linter's process say to each other."""

import msgspec

from server.linting.findings import Finding


class Lint(msgspec.Struct, frozen=True, array_like=True):
    """Asks to lint a certificate."""

    linter: str
    certificate_der: bytes


class Linted(msgspec.Struct, frozen=True, array_like=True):
    """The answer to `Lint`: everything of WARNING or worse."""

    findings: list[Finding]
