"""What a linter finds."""

import enum

import msgspec


class Severity(enum.IntEnum):
    """pkilint's severities; the first three stop a certificate unless an exception is documented."""

    FATAL = 0
    ERROR = 1
    WARNING = 2
    NOTICE = 3
    INFO = 4
    DEBUG = 5


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding: its code names the rule, `where` the field of the certificate."""

    severity: Severity
    code: str
    where: str
    message: str = ""

    def __str__(self) -> str:
        words = f": {self.message}" if self.message else ""
        return f"{self.severity.name} {self.code} at {self.where}{words}"
