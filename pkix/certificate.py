"""Certificates: prepared to the last byte before any key is asked (RFC 5280 §4)."""

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey, signature_algorithm
from pkix.attributes import subject_text
from pkix.errors import LintError
from pkix.issuer import Issuer
from pkix.keys import SubjectPublicKey
from pkix.names import CertificateDer, SerialNumber, TbsDer
from pkix.profile import Profile
from pkix.profile_rules import key_kind
from pkix.subject import CertificateNames
from pkix.unsigned import assemble, capture_tbs

ONE_SECOND = dt.timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCertificate:
    """A TBSCertificate and the facts about it that the database keeps."""

    serial: SerialNumber
    profile: Profile
    tbs: TbsDer
    tbs_sha256: bytes
    spki_sha256: bytes
    subject: str
    names: CertificateNames
    not_before: dt.datetime
    not_after: dt.datetime

    @property
    def dns_names(self) -> tuple[str, ...]:
        """The DNS names, as the database keeps them."""
        return self.names.dns_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """notBefore and notAfter, both inclusive, whole seconds, UTC."""

    not_before: dt.datetime
    not_after: dt.datetime


def choose_validity(
    *,
    now: dt.datetime,
    backdate: dt.timedelta,
    lifetime: dt.timedelta,
    issuer: x509.Certificate,
    profile: Profile | None = None,
) -> Validity:
    """Choose a validity of at most `lifetime`, both ends included (BR 6.3.2), and of what the profile allows then.

    notBefore lies `backdate` before now (subscribers' clocks are late), yet not before the issuer's;
    notAfter is clipped to the issuer's. Raises `LintError` if nothing is left, as when the issuer has expired.
    """
    not_before = max(now.replace(microsecond=0) - backdate, issuer.not_valid_before_utc)
    # The stricter of the two dates: rules speak of when a certificate is issued, linters of when it begins.
    if profile is not None:
        lifetime = min(lifetime, profile.longest(max(now, not_before)))
    not_after = min(not_before + lifetime - ONE_SECOND, issuer.not_valid_after_utc)
    if not_after < now:
        raise LintError("BR 6.3.2: no time is left: the issuing CA has expired, or the profile gives no lifetime")
    return Validity(not_before=not_before, not_after=not_after)


def prepare_certificate(
    *,
    issuer: Issuer,
    profile: Profile,
    serial: SerialNumber,
    validity: Validity,
    public_key: SubjectPublicKey | SigningPublicKey,
    spki_sha256: bytes,
    names: CertificateNames,
) -> PreparedCertificate:
    """Build the exact TBSCertificate of a certificate under a profile. Cost: about 70 µs."""
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(issuer.certificate.subject)
        .subject_name(names.subject)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .public_key(public_key)
    )
    for extension, critical in _extensions(issuer, profile, public_key, names):
        builder = builder.add_extension(extension, critical)
    tbs = capture_tbs(builder, issuer.public_key, issuer.algorithm)
    return PreparedCertificate(
        serial=serial,
        profile=profile,
        tbs=tbs,
        tbs_sha256=hashlib.sha256(tbs).digest(),
        spki_sha256=spki_sha256,
        subject=subject_text(names.subject),
        names=names,
        not_before=validity.not_before,
        not_after=validity.not_after,
    )


def assemble_certificate(prepared: PreparedCertificate, issuer: Issuer, signature: bytes) -> CertificateDer:
    """Join the prepared TBS and its (verified) signature."""
    return CertificateDer(assemble(prepared.tbs, issuer.algorithm, signature))


def prepare_ca_certificate(
    *,
    subject: x509.Name,
    public_key: SigningPublicKey,
    serial: SerialNumber,
    validity: Validity,
    issuer: Issuer | None,
    path_length: int | None,
    self_signed_with: SignatureAlgorithm | None = None,
) -> TbsDer:
    """Build the TBSCertificate of a CA (BR 7.1.2.1, 7.1.2.6).

    Where `issuer` is None it is self-signed, with the key's default algorithm unless `self_signed_with` says
    otherwise.
    """
    builder = (
        x509.CertificateBuilder()
        .serial_number(serial)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .subject_name(subject)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .public_key(public_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if issuer is None:
        return capture_tbs(builder, public_key, self_signed_with or signature_algorithm(public_key))
    # A root has no responder of its own here: its CRL is the authoritative answer for CA certificates.
    issuers_only = issuer.access[frozenset({"issuers"})]
    builder = (
        builder.add_extension(issuer.authority_key_identifier, critical=False)
        .add_extension(issuers_only, critical=False)
        .add_extension(issuer.crl_distribution_points, critical=False)
    )
    return capture_tbs(builder, issuer.public_key, issuer.algorithm)


def _extensions(
    issuer: Issuer, profile: Profile, public_key: SubjectPublicKey | SigningPublicKey, names: CertificateNames
) -> list[tuple[x509.ExtensionType, bool]]:
    """Put the extensions together; those that never change are made once for each profile and for each issuer."""
    extensions = list(profile.constant[key_kind(public_key)])
    extensions.append((issuer.authority_key_identifier, False))
    if profile.subject_key_identifier:
        extensions.append((x509.SubjectKeyIdentifier.from_public_key(public_key), False))
    if profile.aia:
        extensions.append((issuer.access[profile.aia], False))
    if profile.cdp:
        extensions.append((issuer.crl_distribution_points, False))
    alternative = alternative_names(names)
    if alternative:
        # Critical where there is no subject (RFC 5280 §4.2.1.6).
        extensions.append((x509.SubjectAlternativeName(alternative), not names.subject.rdns))
    return extensions


def alternative_names(names: CertificateNames) -> list[x509.GeneralName]:
    """Return the names of subjectAltName in their order."""
    return [
        *map(x509.DNSName, names.dns_names),
        *map(x509.IPAddress, names.ip_addresses),
        *map(x509.RFC822Name, names.emails),
        *map(x509.UniformResourceIdentifier, names.uris),
    ]


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
