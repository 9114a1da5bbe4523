"""The shape of a certificate: everything of its to-be-signed bytes but the values that no linter tells apart.

Two certificates of one shape differ in nothing but serial number, key bits, the moments of their validity, and
names of one plain form. Whatever is not known to be plain stays in the shape byte for byte, and makes it one that
does not recur: such a certificate is linted for itself (docs/linting.md).
"""

import datetime as dt
import hashlib
import ipaddress
import re
from bisect import bisect_left
from dataclasses import dataclass

from pkix.names import TbsDer

SHAPE_VERSION = 1
"""Grows whenever the same bytes get another shape: remembered shapes are then void."""

RULES_CHANGE_AT: tuple[dt.datetime, ...] = tuple(
    dt.datetime(year, month, day, tzinfo=dt.UTC)
    for year, month, day in (
        (2023, 9, 15),
        (2024, 3, 15),
        (2024, 5, 6),
        (2025, 3, 15),
        (2025, 7, 15),
        (2025, 9, 15),
        (2026, 3, 15),
        (2026, 9, 15),
        (2027, 3, 15),
        (2028, 3, 15),
        (2029, 3, 15),
    )
)
"""Since when a rule of the CA/Browser Forum holds or ends; a certificate's notBefore decides about it."""

_RULES_CHANGE_AT = [moment.strftime("%Y%m%d%H%M%S") for moment in RULES_CHANGE_AT]
LIFETIMES_DAYS: tuple[int, ...] = (
    *(7, 10, 46, 47, 99, 100, 199, 200, 365, 366, 397, 398, 730),
    *(824, 825, 1095, 1184, 1185, 2922, 9132),
)
"""Limits of lifetimes in the rules; a shape says on which side of each a lifetime lies, to the second."""
_LIFETIMES_S = sorted(days * 86400 + second for days in LIFETIMES_DAYS for second in (-2, -1, 0, 1))
# RFC 5280 Appendix A.1 and X.520 upper bounds, in characters, and for octets the same; hosts and mailboxes.
_LENGTHS = (0, 1, 2, 3, 40, 64, 128, 200, 255, 256, 2048, 32768)
_HOST_LENGTHS = (63, 64, 253, 254, 255)

_KEY_IDENTIFIER, _ALTERNATIVE_NAMES = b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x11"
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
_STRINGS = {0x0C, 0x13, 0x16}  # UTF8String, PrintableString, IA5String
_EMAIL_NAME, _DNS_NAME, _IP_ADDRESS = 0x81, 0x82, 0x87
_COUNTRY = b"\x55\x04\x06"
_IDENTIFIERS = {b"\x55\x04\x05", b"\x55\x04\x61"}  # serialNumber, organizationIdentifier
_EMAIL_ADDRESS = bytes.fromhex("2a864886f70d010901")
# CN surname L ST street O OU title postalCode givenName pseudonym
_FREE_TEXT = {b"\x55\x04" + bytes((arc,)) for arc in (3, 4, 7, 8, 9, 10, 11, 12, 17, 42, 65)}

# Letters and digits of any script, Lao with its combining vowels and tone marks, and harmless punctuation.
_TEXT = re.compile(r"(?=[^\w\u0e80-\u0eff]{0,8}[^\W_])[\w\u0e80-\u0eff ,.'()/’–-]+")
_DOMAIN = re.compile(r"(\*\.)?((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+)([a-z]{2,63})")
_LOCAL_PART = re.compile(r"[a-z0-9](?:[a-z0-9_+-]|\.(?=[a-z0-9])){0,63}")
# ETSI EN 319 412-1 §5.1.3, §5.1.4; BR 9.2.8. LEI has a check digit, Germany an inner form, INT is odd.
_IDENTIFIER = re.compile(r"((?!LEI|INT|...DE)[A-Z]{2}[A-Z:][A-Z]{2}(?:\+[A-Z]{2})?-)[A-Za-z0-9][A-Za-z0-9 ./-]*")
_UNTYPED_IDENTIFIER = re.compile(r"[A-Za-z0-9]+")
_SPECIAL_DOMAINS = {"arpa", "onion"}
_MANY_LABELS, _MANY_NAMES = 6, 3
_LONG_FORM = 0x80

Part = bytes | str | int | bool | tuple["Part", ...] | None


@dataclass(frozen=True, slots=True)
class Shape:
    """SHA-256 of a shape. `recurs` is False where a value of the request stands in it byte for byte."""

    sha256: bytes
    recurs: bool


def certificate_shape(tbs: TbsDer) -> Shape:
    """Return the shape of a TBSCertificate of version 3 that has been parsed before. Cost: about 25 µs."""
    return _Reader(tbs).shape()


class _Reader:
    """Walks over one TBSCertificate and collects its parts."""

    __slots__ = ("_names", "_parts", "_recurs", "_tbs")

    def __init__(self, tbs: TbsDer) -> None:
        self._tbs = tbs
        self._parts: list[Part] = [SHAPE_VERSION]
        self._recurs = True
        self._names: set[str] = set()

    def shape(self) -> Shape:
        tbs, parts = self._tbs, self._parts
        _, at, _ = _tlv(tbs, 0)
        _, _, serial = _tlv(tbs, at)
        parts.append(tbs[at:serial])  # version
        _, start, rest = _tlv(tbs, serial)
        parts.append(rest - start)
        _, _, issuer = _tlv(tbs, rest)
        _, _, validity = _tlv(tbs, issuer)
        parts.append(tbs[rest:validity])  # signature algorithm and issuer
        _, start, subject = _tlv(tbs, validity)
        parts.append(_validity(tbs, start))
        _, _, key = _tlv(tbs, subject)
        _, key_start, after_key = _tlv(tbs, key)
        parts.append(self._key(key_start))
        if tbs[after_key] != 0xA3:  # noqa: PLR2004 - unique identifiers, which nobody issues
            self._recurs = False
        self._extensions(after_key)
        self._subject(subject)  # last: it is compared with the alternative names
        return Shape(hashlib.sha256(repr(parts).encode()).digest(), self._recurs)

    def _key(self, at: int) -> Part:
        """Algorithm and size; of RSA the exponent, of points their form."""
        tbs = self._tbs
        _, _, bits = _tlv(tbs, at)
        _, start, end = _tlv(tbs, bits)
        algorithm = tbs[at:bits]
        if algorithm != _RSA:
            return algorithm, end - start, tbs[start : start + 2]
        _, inner, _ = _tlv(tbs, start + 1)
        _, modulus, exponent = _tlv(tbs, inner)
        first = tbs[modulus] or tbs[modulus + 1] << 8
        return algorithm, exponent - modulus, first.bit_length(), tbs[exponent:end]

    def _extensions(self, at: int) -> None:
        """Keep extensions as they are: OIDs, criticality, order, values; but key identifier and names."""
        tbs, parts = self._tbs, self._parts
        _, at, _ = _tlv(tbs, at)
        _, at, end = _tlv(tbs, at)
        kept = at
        while at < end:
            _, start, after = _tlv(tbs, at)
            oid = tbs[start : start + 5]
            if oid in (_KEY_IDENTIFIER, _ALTERNATIVE_NAMES):
                parts.append(tbs[kept:at])
                value = start + 5
                if tbs[value] == 0x01:
                    value += 3
                parts.append(tbs[start:value])
                _, value, _ = _tlv(tbs, value)
                parts.append(after - value if oid == _KEY_IDENTIFIER else self._alternative_names(value))
                kept = after
            at = after
        parts.append(tbs[kept:end])

    def _alternative_names(self, at: int) -> Part:
        """Return which forms of names there are, in the order of their first; how many, where few."""
        tbs = self._tbs
        forms: dict[Part, None] = {}
        count = 0
        _, at, end = _tlv(tbs, at)
        while at < end:
            tag, start, after = _tlv(tbs, at)
            forms[self._general_name(tag, tbs[start:after])] = None
            at = after
            count += 1
        return min(count, _MANY_NAMES), *forms

    def _general_name(self, tag: int, value: bytes) -> Part:
        if tag == _IP_ADDRESS and len(value) in (4, 16):
            address = ipaddress.ip_address(value)
            self._names.add(str(address))
            return tag, len(value), address.is_global
        form: Part = None
        text = value.decode("latin-1")
        self._names.add(text)
        if tag == _DNS_NAME:
            form = _domain(text)
        elif tag == _EMAIL_NAME:
            form = _email(text)
        return tag, form if form is not None else self._as_it_is(value)

    def _as_it_is(self, value: bytes) -> bytes:
        self._recurs = False
        return value

    def _subject(self, at: int) -> None:
        tbs, parts = self._tbs, self._parts
        seen: dict[str, int] = {}
        _, at, end = _tlv(tbs, at)
        while at < end:
            _, attribute, after = _tlv(tbs, at)
            while attribute < after:
                _, oid_at, next_attribute = _tlv(tbs, attribute)
                _, oid_start, value_at = _tlv(tbs, oid_at)
                tag, start, stop = _tlv(tbs, value_at)
                oid = tbs[oid_start:value_at]
                parts.append((oid, tag, self._attribute(oid, tag, tbs[start:stop], seen)))
                attribute = next_attribute
            parts.append(None)  # the end of an RDN
            at = after

    def _attribute(self, oid: bytes, tag: int, value: bytes, seen: dict[str, int]) -> Part:
        """Return the form of a value, and which other value it repeats, in the same letters or in others."""
        if oid == _COUNTRY:
            return value
        if tag not in _STRINGS:
            return self._as_it_is(value)
        text = value.decode("utf-8", "replace")
        in_names = text in self._names
        form = _form(oid, text, in_names=in_names)
        if form is None:
            return self._as_it_is(value)
        folded = text.casefold()
        number = len(seen)
        repeats = seen.setdefault(text, number), seen.setdefault(folded + "\n", number)
        return form, in_names, folded in self._names, repeats, _length(len(text)), _length(len(value))


def _form(oid: bytes, text: str, *, in_names: bool) -> Part:
    """Classify an attribute's value; None if it is of no plain form."""
    if oid in _IDENTIFIERS:
        return _identifier(text)
    if oid == _EMAIL_ADDRESS:
        return _email(text)
    if oid not in _FREE_TEXT:
        return None
    if in_names:
        return _email(text) or _domain(text)
    if not _TEXT.fullmatch(text) or ("." in text and " " not in text):  # which may be a host's name
        return None
    return text.isascii(), text[0] == " ", text[-1] == " ", "  " in text


def _identifier(text: str) -> Part:
    if match := _IDENTIFIER.fullmatch(text):
        return match[1]
    return "untyped" if _UNTYPED_IDENTIFIER.fullmatch(text) else None


def _domain(text: str) -> Part:
    match = _DOMAIN.fullmatch(text)
    if match is None or "--" in text or match[3] in _SPECIAL_DOMAINS:
        return None
    return match[1], match[3], min(match[2].count("."), _MANY_LABELS), bisect_left(_HOST_LENGTHS, len(text))


def _email(text: str) -> Part:
    local, at, domain = text.partition("@")
    if not at or not _LOCAL_PART.fullmatch(local):
        return None
    form = _domain(domain)
    return None if form is None or domain[0] == "*" else ("@", form, bisect_left(_HOST_LENGTHS, len(text)))


def _length(length: int) -> int:
    return bisect_left(_LENGTHS, length)


def _validity(tbs: bytes, at: int) -> Part:
    """String types, which rules hold at notBefore, and between which limits the lifetime lies."""
    first, start, second = _tlv(tbs, at)
    last, second_start, end = _tlv(tbs, second)
    start_text, end_text = _moment(tbs[start:second]), _moment(tbs[second_start:end])
    parse = dt.datetime.fromisoformat
    seconds = int((parse(_iso(end_text)) - parse(_iso(start_text))).total_seconds())
    return first, last, bisect_left(_RULES_CHANGE_AT, start_text + "!"), bisect_left(_LIFETIMES_S, seconds)


def _moment(value: bytes) -> str:
    """Return YYYYMMDDHHMMSS of a UTCTime or GeneralizedTime (RFC 5280 §4.1.2.5)."""
    text = value[:-1].decode("ascii")
    return text if len(text) == 14 else ("20" if text < "5" else "19") + text  # noqa: PLR2004 - digits


def _iso(text: str) -> str:
    return f"{text[:8]}T{text[8:]}"


def _tlv(data: bytes, at: int) -> tuple[int, int, int]:
    """Return tag, begin of content and end of the DER element at `at` (low tag numbers)."""
    length = data[at + 1]
    at += 2
    if length < _LONG_FORM:
        return data[at - 2], at, at + length
    start = at + (length & 0x7F)
    return data[at - 2], start, start + int.from_bytes(data[at:start], "big")
