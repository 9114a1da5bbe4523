"""Subject alternative names as texts: read, checked, and brought into one form (RFC 5280 §4.2.1.6)."""

import ipaddress
import re
from urllib.parse import urlsplit

from pkix.csr import IpAddress
from pkix.errors import ProfileViolation

_MAX_DNS_NAME = 253
_MAX_EMAIL, _MAX_LOCAL = 254, 64  # RFC 5321 §4.5.3.1
_MAX_URI = 1024
_PUBLIC_LABELS = 2
# RFC 1034 §3.5 with RFC 1123 §2.1; a wildcard only as the whole leftmost label (RFC 6125 §6.4.3).
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
# RFC 3696 §2; and a browser takes what ends so for an IPv4 address (URL standard, "ends in a number").
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_RESERVED_LABEL = re.compile(r"(?:.*\.)?(?!xn--)..--.*")  # RFC 5890 §2.3.1
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")  # a Dot-string of RFC 5321 §4.1.2
# What `is_global` lets pass of IANA's special-purpose registries (BR 1.6.1, "Reserved IP Address": any entry of
# them), and multicast, which is no host.
_RESERVED = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
        *("224.0.0.0/4", "2001::/23", "2002::/16", "2620:4f:8000::/48", "3fff::/20"),
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA has given out of IPv6 (RFC 4291 §2.4)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")  # RFC 3986


def dns_name(name: str, field: str, *, public: bool = False) -> str:
    """Return the name in lower case; `public`: it must be one that the whole internet can have (BR 7.1.4.2)."""
    lowered = name.lower()
    if not name.isascii() or len(lowered) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(lowered):
        raise ProfileViolation(
            f"{name[:80]!r} is not a DNS name",
            field=field,
            remedy="use letters, digits, hyphens and dots; write other scripts as xn-- labels (RFC 5890)",
        )
    if _NUMERIC_LABEL.fullmatch(lowered.rpartition(".")[2]):
        raise ProfileViolation(
            f"{name[:80]!r} is not a DNS name: it ends in a number",
            field=field,
            remedy="ask for an IP address as such, for example -addext 'subjectAltName=IP:192.0.2.7'",
        )
    labels = lowered.removeprefix("*.")
    if public and (labels.count(".") + 1 < _PUBLIC_LABELS or _RESERVED_LABEL.fullmatch(labels)):
        raise ProfileViolation(
            f"{name[:80]!r} is not a name that public trust knows",
            field=field,
            remedy="ask for a full name below a public domain; or use a profile of private trust",
        )
    return lowered


def ip_address(text: str, field: str) -> IpAddress:
    """Return the address; zones are refused."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ProfileViolation(
            f"{text[:80]!r} is not an IP address", field=field, remedy="write 192.0.2.7 or 2001:db8::7"
        ) from None
    if "%" in text:
        raise ProfileViolation(f"{text[:80]!r} has a zone", field=field, remedy="leave % and the zone out")
    return address


def require_global(address: IpAddress, field: str) -> IpAddress:
    """Return an address that is not reserved (BR 7.1.4.2)."""
    given_out = address.version == 4 or address in _GLOBAL_UNICAST  # noqa: PLR2004 - of IP
    if not given_out or not address.is_global or any(address in network for network in _RESERVED):
        raise ProfileViolation(
            f"{address} is not an address of the public internet",
            field=field,
            remedy="use a public address, or a profile of private trust",
        )
    return address


def email_address(text: str, field: str) -> str:
    """Return the mailbox with its domain in lower case (RFC 5280 §4.2.1.6: rfc822Name, ASCII)."""
    local, at, domain = text.rpartition("@")
    if not local.isascii():
        raise ProfileViolation(
            f"{text[:80]!r} has other letters than ASCII before the @, which few mail programs understand",
            field=field,
            remedy="use an address in ASCII; internationalised mailboxes (RFC 9598) are not issued",
        )
    if not at or not _LOCAL_PART.fullmatch(local) or len(local) > _MAX_LOCAL or len(text) > _MAX_EMAIL:
        raise ProfileViolation(
            f"{text[:80]!r} is not an e-mail address", field=field, remedy="write it as name@example.la"
        )
    domain = dns_name(domain, field, public=True)
    if domain.startswith("*."):
        raise ProfileViolation(f"{text[:80]!r} has a wildcard", field=field, remedy="name one mailbox")
    return f"{local}@{domain}"


def uri(text: str, field: str) -> str:
    """Return the URI: absolute, in ASCII, and with a host where it has an authority."""
    if not _URI.fullmatch(text) or len(text) > _MAX_URI:
        raise ProfileViolation(
            f"{text[:80]!r} is not an absolute URI in ASCII",
            field=field,
            remedy="write a scheme and what it names, as https://example.la/7 or urn:uuid:…; others as % and hex",
        )
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", None
    if parts is None or (text[len(parts.scheme) + 1 :].startswith("//") and (not host or "@" in parts.netloc)):
        raise ProfileViolation(
            f"{text[:80]!r} has no host that can be read",
            field=field,
            remedy="write //host without user or password",
        )
    if host and ":" not in host and not host.replace(".", "").isdigit():
        dns_name(host, field)
    return text
