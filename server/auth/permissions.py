"""What a certificate's names claim, and whether a client's limits hold it. Pure.

- `names` is for DNS names, IP addresses, hosts of URIs, domains of e-mail addresses (also in emailAddress), DC,
  and a CN that reads as one of them. A DNS name holds itself and all below it, an IP address itself.
- `organizations` is for O. A value holds the same text, letter case and width of blanks aside.
- `identifiers` is for organizationIdentifier, serialNumber and UID. A value holds the same text, or with `*` at
  its end everything that begins so.

All other attributes say what somebody is called or where they are, not who they are: relying parties tell subjects
apart by the ones above. "*" alone holds everything.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.subject import CertificateNames

ANY = "*"
Limit = Literal["names", "organizations", "identifiers"]
_IDENTIFIERS = {
    NameOID.ORGANIZATION_IDENTIFIER: "organizationIdentifier",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.USER_ID: "UID",
}
_LABEL = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})+\.?", re.IGNORECASE | re.ASCII)
# RFC 3986 §3.2 without userinfo, which only misleads: https://ministry.gov@elsewhere/ is at elsewhere.
_URI = re.compile(
    r"[a-z][a-z0-9+.-]*://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]*)?([/?#][!-\[\]_a-z~]*)?",
    re.IGNORECASE | re.ASCII,
)
_MAILBOX = re.compile(r"[^\s@]@[^\s@]")
# Letters of other scripts before a domain in ASCII, as a Cyrillic i in ministry.gov. Elsewhere a dot abbreviates:
# ສ.ປ.ປ.ລາວ is no host.
_FOREIGN_HOST = re.compile(r"\S+\.[a-z]{2,63}\.?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that a certificate says of its subject: the limit it falls under, what is compared, what is shown.

    `value` is None where nothing can hold it but "*".
    """

    limit: Limit
    value: str | None
    shown: str


def claims(names: CertificateNames) -> Iterator[Claim]:
    """Yield everything in the names that identifies somebody."""
    for name in names.dns_names:
        yield Claim("names", _host(name), name)
    for address in names.ip_addresses:
        yield Claim("names", str(address), str(address))
    for email in names.emails:
        yield _email(email)
    for uri in names.uris:
        yield _uri(uri, uri)
    yield from _subject(names.subject)


def holds(allowed: Sequence[str], claim: Claim) -> bool:
    """Say whether a limit's values hold the claim."""
    if ANY in allowed:
        return True
    value = claim.value
    if value is None:
        return False
    if claim.limit == "names":
        return any(value == name or value.endswith("." + name) for name in allowed)
    if claim.limit == "organizations":
        return any(normal(value) == normal(name) for name in allowed)
    return any(
        value.startswith(one.removesuffix(ANY)) if one.endswith(ANY) else value == one
        for one in map(_composed, allowed)
    )


def normal(text: str) -> str:
    """Return the form in which organisations are compared: X.520's caseIgnoreMatch without compatibility forms.

    Composed (NFC), letter case folded, blanks at the ends dropped and others made one. Not NFKC: what only looks
    alike stays different.
    """
    return _composed(" ".join(_composed(text).casefold().split()))


def _subject(subject: x509.Name) -> Iterator[Claim]:
    components: list[str] = []
    for attribute in subject:
        oid, value = attribute.oid, str(attribute.value)
        if oid == NameOID.ORGANIZATION_NAME:
            yield Claim("organizations", value, f"O={value}")
        elif oid in _IDENTIFIERS:
            yield Claim("identifiers", _composed(value), f"{_IDENTIFIERS[oid]}={value}")
        elif oid == NameOID.EMAIL_ADDRESS:
            yield _email(value)
        elif oid == NameOID.COMMON_NAME:
            yield from _common_name(value)
        elif oid == NameOID.DOMAIN_COMPONENT:
            components.insert(0, value)
    if components:
        name = ".".join(components)
        yield Claim("names", _host(name), f"DC={name}")


def _common_name(value: str) -> Iterator[Claim]:
    """A common name is free text, unless software or people might take it for a host, a mailbox or a URI."""
    # IDNA maps wide letters and the ideographic full stop (RFC 3490 §3.1, RFC 3491), and so does who reads them.
    plain = unicodedata.normalize("NFKC", value).replace("\u3002", ".")
    shown = f"CN={value}"
    if "@" in plain and " " not in plain:
        yield _email(plain)
    elif _MAILBOX.search(plain):
        yield from (_email(word.strip("<>()[]\"',;:.")) for word in plain.split() if "@" in word)
    elif "://" in plain:
        yield _uri(plain, shown)
    elif _is_host(host := _before_port(plain)):
        yield Claim("names", _host(host), shown)
    elif not plain.isascii() and _FOREIGN_HOST.fullmatch(plain):
        yield Claim("names", None, shown)


def _before_port(text: str) -> str:
    """Return the host of HOST:PORT/PATH, as people copy it from browsers; else the text."""
    if _is_host(text):
        return text
    match = _URI.fullmatch("any://" + text.removeprefix("*."))
    return match["host"].strip("[]") if match else text


def _is_host(text: str) -> bool:
    return _HOST.fullmatch(text) is not None or bool(_address(text))


def _uri(uri: str, shown: str) -> Claim:
    match = _URI.fullmatch(uri)
    return Claim("names", match and _host(match["host"].strip("[]")), shown)


def _email(address: str) -> Claim:
    domain = address.rpartition("@")[2]
    return Claim("names", _host(domain) if _HOST.fullmatch(domain) else None, address)


def _host(name: str) -> str:
    """Return the name below which a DNS name lies, or the address, as limits write them."""
    return _address(name) or name.lower().removeprefix("*.").removesuffix(".")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)
