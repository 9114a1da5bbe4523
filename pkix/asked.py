"""Names that a request gives beside its CSR."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedNames:
    """What the JSON of a request says about subject and subject alternative names; texts, not yet checked.

    `subject` holds (attribute, value) pairs with RFC 4514 names such as "CN", in the order given.
    """

    subject: tuple[tuple[str, str], ...] = ()
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Return what `as_json` gave."""
        subject = tuple((str(name), str(value)) for name, value in given.get("subject", ()))
        names = {kind: tuple(map(str, texts)) for kind, texts in given.items() if kind != "subject"}
        return cls(subject=subject, **names)

    @property
    def as_json(self) -> dict[str, object]:
        """Return what the database keeps: only what was given."""
        given = {
            "subject": [list(pair) for pair in self.subject],
            "dns_names": list(self.dns_names),
            "ip_addresses": list(self.ip_addresses),
            "emails": list(self.emails),
            "uris": list(self.uris),
        }
        return {name: value for name, value in given.items() if value}
