"""The names of a certificate, carried over to its successor."""

import dataclasses
import unicodedata
from collections import Counter
from functools import partial

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from pkix.attributes import subject_text
from pkix.csr import CertificationRequest, bounds_in_characters
from pkix.profile import Profile
from pkix.profile_rules import Source
from pkix.subject import CertificateNames, select_names
from server.errors import RenewalRefused

Attributes = Counter[tuple[x509.ObjectIdentifier, str]]


def names_of(certificate_der: bytes) -> CertificateNames:
    """Return the subject and the subject alternative names of a certificate of ours."""
    certificate = x509.load_der_x509_certificate(certificate_der)
    with bounds_in_characters():
        subject = certificate.subject
    alternative = _alternative_names(certificate.extensions) or x509.SubjectAlternativeName([])
    return CertificateNames(
        subject=subject,
        dns_names=tuple(alternative.get_values_for_type(x509.DNSName)),
        ip_addresses=tuple(name.value for name in alternative if isinstance(name, x509.IPAddress)),  # type: ignore[misc]
        emails=tuple(alternative.get_values_for_type(x509.RFC822Name)),
        uris=tuple(alternative.get_values_for_type(x509.UniformResourceIdentifier)),
    )


def require_same(request: CertificationRequest, old: CertificateNames) -> None:
    """Raise `RenewalRefused` if the CSR names something else; a CSR may leave subject or names out."""
    csr = x509.load_der_x509_csr(request.der)
    if request.subject.rdns and _attributes(request.subject) != _attributes(old.subject):
        raise _refused(
            "the CSR has another subject than the certificate",
            remedy=f"leave the subject empty, or write {subject_text(old.subject)[:200]}",
        )
    asked = _alternative_names(csr.extensions)
    if asked is not None and _general_names(asked) != _texts(old):
        raise _refused(
            "the CSR has other subject alternative names than the certificate",
            remedy=f"leave subjectAltName out, or write all of: {', '.join(sorted(_texts(old)))[:200] or 'none'}",
        )


def select_kept(request: CertificationRequest, old: CertificateNames, profile: Profile) -> CertificateNames:
    """Return the names of a successor under a profile; raises `ProfileViolation`, `RenewalRefused`."""
    selected = select_names(with_names(request, old), from_anywhere(profile))
    require_kept(selected, old)
    return selected


def with_names(request: CertificationRequest, names: CertificateNames) -> CertificationRequest:
    """Return the request as if it had asked for these names."""
    return dataclasses.replace(
        request,
        subject=names.subject,
        dns_names=names.dns_names,
        ip_addresses=names.ip_addresses,
        emails=names.emails,
        uris=names.uris,
        other_names=0,
    )


def from_anywhere(profile: Profile) -> Profile:
    """Return the profile without its say about where a request gives names: these stood in a certificate."""
    anywhere = partial(dataclasses.replace, source=Source.EITHER)
    return dataclasses.replace(
        profile,
        subject=tuple(anywhere(rule) for rule in profile.subject),
        dns=anywhere(profile.dns),
        ip=anywhere(profile.ip),
        email=anywhere(profile.email),
        uri=anywhere(profile.uri),
    )


def require_kept(selected: CertificateNames, old: CertificateNames) -> None:
    """Raise `RenewalRefused` if the present version of the profile makes other names of the old ones."""
    if _attributes(selected.subject) != _attributes(old.subject) or _texts(selected) != _texts(old):
        raise _refused(
            "the profile has changed and does not give these names any more",
            remedy="ask for a new certificate by POST /v1/certificates",
        )


def _attributes(name: x509.Name) -> Attributes:
    return Counter((a.oid, unicodedata.normalize("NFC", str(a.value))) for a in name)


def _alternative_names(extensions: x509.Extensions) -> x509.SubjectAlternativeName | None:
    try:
        extension = extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    except x509.ExtensionNotFound:
        return None
    return extension.value if isinstance(extension.value, x509.SubjectAlternativeName) else None


def _general_names(names: x509.SubjectAlternativeName) -> set[str]:
    return {
        f"DNS:{name.value.lower()}" if isinstance(name, x509.DNSName) else f"{_KINDS.get(type(name))}:{name.value}"
        for name in names
    }


def _texts(names: CertificateNames) -> set[str]:
    return {
        *(f"DNS:{name}" for name in names.dns_names),
        *(f"IP:{address}" for address in names.ip_addresses),
        *(f"email:{email}" for email in names.emails),
        *(f"URI:{uri}" for uri in names.uris),
    }


_KINDS: dict[type[x509.GeneralName], str] = {
    x509.IPAddress: "IP",
    x509.RFC822Name: "email",
    x509.UniformResourceIdentifier: "URI",
}


def _refused(why: str, *, remedy: str) -> RenewalRefused:
    return RenewalRefused(why, field="csr", remedy=remedy)
