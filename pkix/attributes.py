"""The attribute types that a subject may hold: their OIDs, string types and upper bounds (RFC 5280 Appendix A)."""

import re
import unicodedata
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

_UTF8_STRING, _PRINTABLE_STRING, _IA5_STRING = 0x0C, 0x13, 0x16
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")  # X.680 §41.4
# Default_Ignorable_Code_Point (UAX #44), as far as Python takes them for printable, and the empty Braille cell.
# They show nothing, so a name with one of them looks like another name.
_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_COUNTRY = re.compile(r"[A-Z]{2}")
_DOMAIN_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeType:
    """One attribute type. `tag` is that of its string type, `bound` its upper bound in characters.

    `sample` is a value for certificates that are made to try a profile.
    """

    name: str
    oid: x509.ObjectIdentifier
    bound: int
    sample: str
    tag: int

    @property
    def oid_der(self) -> bytes:
        """The OID as DER (X.690 §8.19)."""
        return _OID_DER[self.oid]

    @property
    def string_type(self) -> str:
        """The ASN.1 name of the string type that its values are written in."""
        return {_UTF8_STRING: "UTF8String", _PRINTABLE_STRING: "PrintableString", _IA5_STRING: "IA5String"}[
            self.tag
        ]


def _oid_der(oid: x509.ObjectIdentifier) -> bytes:
    first, second, *others = map(int, oid.dotted_string.split("."))
    content = b""
    for arc in (40 * first + second, *others):
        octets = bytes((arc >> shift) & 0x7F | 0x80 for shift in range(7 * 4, 0, -7)).lstrip(b"\x80")
        content += octets + bytes((arc & 0x7F,))
    return bytes((0x06, len(content))) + content


_TYPES = tuple(
    AttributeType(name=name, oid=oid, bound=bound, tag=tag, sample=sample)
    for name, oid, bound, tag, sample in (
        ("C", NameOID.COUNTRY_NAME, 2, _PRINTABLE_STRING, "LA"),
        ("DC", NameOID.DOMAIN_COMPONENT, 63, _IA5_STRING, "example"),
        ("ST", NameOID.STATE_OR_PROVINCE_NAME, 128, _UTF8_STRING, "Vientiane Prefecture"),
        ("L", NameOID.LOCALITY_NAME, 128, _UTF8_STRING, "Vientiane"),
        ("street", NameOID.STREET_ADDRESS, 128, _UTF8_STRING, "Lane Xang Avenue 1"),
        ("postalCode", NameOID.POSTAL_CODE, 40, _UTF8_STRING, "01000"),
        ("O", NameOID.ORGANIZATION_NAME, 64, _UTF8_STRING, "ກະຊວງຕົວຢ່າງ"),
        ("organizationIdentifier", NameOID.ORGANIZATION_IDENTIFIER, 64, _UTF8_STRING, "NTRLA-01-00012345"),
        ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME, 64, _UTF8_STRING, "ກົມຕົວຢ່າງ"),
        ("title", NameOID.TITLE, 64, _UTF8_STRING, "Director"),
        ("givenName", NameOID.GIVEN_NAME, 64, _UTF8_STRING, "Khamla"),
        ("surname", NameOID.SURNAME, 64, _UTF8_STRING, "Sample"),
        ("pseudonym", NameOID.PSEUDONYM, 128, _UTF8_STRING, "sample"),
        ("CN", NameOID.COMMON_NAME, 64, _UTF8_STRING, "Sample"),
        ("serialNumber", NameOID.SERIAL_NUMBER, 64, _PRINTABLE_STRING, "01-00012345"),
        ("dnQualifier", NameOID.DN_QUALIFIER, 64, _PRINTABLE_STRING, "1"),
        ("emailAddress", NameOID.EMAIL_ADDRESS, 255, _IA5_STRING, "sample@example.la"),
    )
)
# givenName and surname may have 32768 characters (RFC 5280); X.520 has no bound for organizationIdentifier,
# dnQualifier and DC. Nobody's name needs more than these.

BY_NAME: dict[str, AttributeType] = {kind.name: kind for kind in _TYPES}
"""Every attribute type by its RFC 4514 name, or X.520's where that has none."""

BY_OID: dict[x509.ObjectIdentifier, AttributeType] = {kind.oid: kind for kind in _TYPES}

_TOLD = {kind.oid: kind.name for kind in _TYPES}
_PRINTABLE_FORM = (_PRINTABLE, "a PrintableString", "use A to Z, a to z, digits, blanks and '()+,-./:=?")
_OID_DER = {kind.oid: _oid_der(kind.oid) for kind in _TYPES}
_FORMS: dict[str, tuple[re.Pattern[str], str, str]] = {
    "C": (_COUNTRY, "two capital letters", "use an ISO 3166-1 code, as LA"),
    "DC": (_DOMAIN_LABEL, "one label of a domain name", "use letters, digits and hyphens; one DC for each label"),
    "emailAddress": (_EMAIL, "an e-mail address in ASCII", "write it as name@example.la"),
    "serialNumber": _PRINTABLE_FORM,
    "dnQualifier": _PRINTABLE_FORM,
}


def subject_text(name: x509.Name) -> str:
    """Return a name as RFC 4514 writes it, each attribute called as in requests and profiles, not by its OID."""
    return name.rfc4514_string(_TOLD)


def normalised(text: str) -> str:
    """Return the text in Unicode's normal form C.

    The same letters can be written in several ways that nobody can tell apart. One form makes names comparable,
    and nobody has to mend what cannot be seen; the two are the same text by definition (UAX #15). What would
    become ASCII by it, as U+212A, the Kelvin sign, is left as it is: `fault_of` refuses it.
    """
    if text.isascii():
        return text
    normal = unicodedata.normalize("NFC", text)
    return text if normal.isascii() else normal


def fault_of(kind: AttributeType, value: str, max_length: int) -> tuple[str, str] | None:
    """Return what is wrong with a normalised value, and what would be right; None for nothing."""
    seen = value.isprintable() and (value.isascii() or not _INVISIBLE.search(value))
    if not value.strip() or not seen or len(value) > max_length:
        return (
            f"subject attribute {kind.name} is empty, too long, or has control or invisible characters",
            f"use 1 to {max_length} printable characters",
        )
    if not value.isascii() and not unicodedata.is_normalized("NFC", value):
        return (
            f"subject attribute {kind.name} has a letter that only looks like another (is not in normal form C)",
            "write it with the letters of the keyboard",
        )
    if value != value.strip():
        return f"subject attribute {kind.name} begins or ends with a blank", "leave the blank out"
    form = _FORMS.get(kind.name)
    if form is not None and not form[0].fullmatch(value):
        return f"subject attribute {kind.name} is not {form[1]}", form[2]
    return None
