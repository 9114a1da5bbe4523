"""Which names of a request go into a certificate, or a clear refusal."""

import ipaddress
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from pkix.csr import CertificationRequest, IpAddress, bounds_in_characters
from pkix.errors import ProfileViolation
from pkix.profile import SUBJECT_ATTRIBUTES, Profile

MAX_NAMES = 100
MAX_UNITS = 4
_MAX_DNS_NAME = 253
# RFC 1034 §3.5 with RFC 1123 §2.1; a wildcard only as the whole leftmost label (RFC 6125 §6.4.3).
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
# RFC 3696 §2; and a browser takes what ends so for an IPv4 address (URL standard, "ends in a number").
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_COUNTRY = re.compile(r"[A-Z]{2}")
_PRINTABLE_STRING = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")  # X.680 §41.4
# RFC 5280 Appendix A.1 upper bounds, in characters.
_UPPER_BOUND = {"C": 2, "ST": 128, "L": 128, "O": 64, "OU": 64, "CN": 64, "serialNumber": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateNames:
    """The names of one certificate: checked, normalised, without repetition."""

    subject: x509.Name
    dns_names: tuple[str, ...]
    ip_addresses: tuple[IpAddress, ...]
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def select_names(request: CertificationRequest, profile: Profile) -> CertificateNames:
    """Take from the request what the profile gives; raises `ProfileViolation` for anything else in it."""
    subject = _select_subject(request.subject, profile)
    if request.other_names:
        raise _violation(
            "the CSR asks for subject alternative names other than DNS names and IP addresses",
            remedy="leave e-mail, URI and other names out of subjectAltName",
        )
    if not profile.subject_alternative_name:
        if request.dns_names or request.ip_addresses:
            raise _violation(
                f"profile {profile.name} has no subject alternative names, but the CSR asks for some",
                remedy="leave subjectAltName out, or use profile tls-server",
            )
        return CertificateNames(subject=subject, dns_names=(), ip_addresses=())
    return _select_alternative_names(request, subject)


def _select_alternative_names(request: CertificationRequest, subject: x509.Name) -> CertificateNames:
    common_names = [str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    dns_names = tuple(dict.fromkeys(_dns_name(name) for name in request.dns_names))
    ip_addresses = tuple(dict.fromkeys(request.ip_addresses))
    if not dns_names and not ip_addresses:
        # `openssl req -subj /CN=host` carries no SAN: the common name is then the one name asked for.
        dns_names, ip_addresses = _from_common_names(common_names)
    if not dns_names and not ip_addresses:
        raise _violation(
            "the CSR names no host",
            remedy="add subjectAltName, for example -addext 'subjectAltName=DNS:www.example.gov'",
        )
    if len(dns_names) + len(ip_addresses) > MAX_NAMES:
        raise _violation(f"more than {MAX_NAMES} names", remedy="split the names over several certificates")
    known = {*dns_names, *(str(ip) for ip in ip_addresses)}
    # BR 7.1.4.3. Only ASCII: U+212A, the Kelvin sign, is a k in lower case, yet another name to who reads it.
    if any(not name.isascii() or name.lower() not in known for name in common_names):
        raise _violation(
            "the common name is not one of the subject alternative names",
            remedy="add the common name to subjectAltName, or leave it out",
        )
    return CertificateNames(subject=subject, dns_names=dns_names, ip_addresses=ip_addresses)


def _from_common_names(common_names: list[str]) -> tuple[tuple[str, ...], tuple[IpAddress, ...]]:
    dns_names: list[str] = []
    ip_addresses: list[IpAddress] = []
    for name in common_names:
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            dns_names.append(_dns_name(name))
            continue
        if "%" in name or str(address) != name.lower():  # a zone may hold any text, which a CN would then show
            raise _violation(
                f"{name[:80]!r} is not written as IP addresses are",
                remedy=f"write {str(address).partition('%')[0]} (RFC 5952)",
            )
        ip_addresses.append(address)
    return tuple(dns_names), tuple(ip_addresses)


def _dns_name(name: str) -> str:
    lowered = name.lower()
    if not name.isascii() or len(lowered) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(lowered):
        raise _violation(
            f"{name[:80]!r} is not a DNS name",
            remedy="use letters, digits, hyphens and dots; write other scripts as xn-- labels (RFC 5890)",
        )
    if _NUMERIC_LABEL.fullmatch(lowered.rpartition(".")[2]):
        raise _violation(
            f"{name[:80]!r} is not a DNS name: it ends in a number",
            remedy="ask for an IP address as such, for example -addext 'subjectAltName=IP:192.0.2.7'",
        )
    return lowered


def _select_subject(asked: x509.Name, profile: Profile) -> x509.Name:
    attributes = [_attribute(attribute) for rdn in asked.rdns for attribute in rdn]
    types = [a.oid for a in attributes]
    for oid, short in SUBJECT_ATTRIBUTES.items():
        at_most = MAX_UNITS if oid == NameOID.ORGANIZATIONAL_UNIT_NAME else 1
        if types.count(oid) > at_most:
            raise _violation(
                f"subject attribute {short} stands {types.count(oid)} times",
                remedy=f"use each attribute once; OU up to {MAX_UNITS} times",
            )
    if profile.subject_required and NameOID.COMMON_NAME not in types:
        raise _violation(
            f"profile {profile.name} needs a common name in the subject",
            remedy="name the system or person, for example openssl req … -subj '/O=Ministry/CN=e-licence'",
        )
    return x509.Name(attributes)


def _attribute(attribute: x509.NameAttribute[str | bytes]) -> x509.NameAttribute[str]:
    oid, value = attribute.oid, attribute.value
    short = SUBJECT_ATTRIBUTES.get(oid)
    if short is None or not isinstance(value, str):
        raise _violation(
            f"subject attribute {oid.dotted_string} is not allowed",
            remedy=f"use only {', '.join(SUBJECT_ATTRIBUTES.values())} in the subject",
        )
    if oid == NameOID.COUNTRY_NAME and not _COUNTRY.fullmatch(value):
        raise _violation("the country is not two capital letters", remedy="use an ISO 3166-1 code, as C=LA")
    if not value.strip() or not value.isprintable() or len(value) > _UPPER_BOUND[short]:
        raise _violation(
            f"subject attribute {short} is empty, too long, or has control or invisible characters",
            remedy=f"use 1 to {_UPPER_BOUND[short]} printable characters",
        )
    if oid == NameOID.SERIAL_NUMBER and not _PRINTABLE_STRING.fullmatch(value):  # RFC 5280 Appendix A.1
        raise _violation(
            "subject attribute serialNumber is not a PrintableString",
            remedy="use A to Z, a to z, digits, blanks and '()+,-./:=? in serialNumber",
        )
    with bounds_in_characters():
        return x509.NameAttribute(oid, value, _validate=False)


def _violation(detail: str, *, remedy: str) -> ProfileViolation:
    return ProfileViolation(detail, field="csr", remedy=remedy)
