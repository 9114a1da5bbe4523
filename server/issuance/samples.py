"""Certificates that are made to try a profile: with throw-away software keys, under a CA that nobody trusts."""

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pkix.algorithms import SigningPublicKey, signature_algorithm
from pkix.asked import AskedNames
from pkix.attributes import BY_NAME
from pkix.certificate import (
    PreparedCertificate,
    Validity,
    assemble_certificate,
    choose_validity,
    prepare_ca_certificate,
    prepare_certificate,
)
from pkix.csr import CertificationRequest, bounds_in_characters
from pkix.errors import LintError, RequesterError
from pkix.general_names import ip_address
from pkix.issuer import Issuer
from pkix.lint import lint_certificate
from pkix.names import CertificateDer
from pkix.profile import Profile
from pkix.profile_rules import CURVES, Presence, Source
from pkix.subject import select_names
from pkix.unsigned import assemble
from server.clock import utc_now
from server.issuance.serial import new_serial

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_URL = "http://pki.example.la"
_CURVES = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1(), "secp521r1": ec.SECP521R1()}
_BACKDATE = dt.timedelta(minutes=5)
_DAY = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCa:
    """A CA whose key is in memory."""

    key: ec.EllipticCurvePrivateKey
    issuer: Issuer

    def sign(self, prepared: PreparedCertificate) -> CertificateDer:
        """Return the whole certificate."""
        signature = self.key.sign(prepared.tbs, *self.issuer.algorithm.scheme)
        return assemble_certificate(prepared, self.issuer, signature)


class Sample(NamedTuple):
    """A certificate that is prepared, not yet linted or signed; its issuer; and the CA that would sign it."""

    prepared: PreparedCertificate
    issuer: Issuer
    ca: SampleCa


def sample_certificate(
    profile: Profile,
    *,
    full: bool = False,
    key: PrivateKey | None = None,
    ca: SampleCa | None = None,
    now: dt.datetime | None = None,
) -> Sample:
    """Make a certificate out of the profile's own examples; `full`: with all that is optional too.

    Raises `RequesterError` if the examples do not go together. Cost: less than a millisecond; 100 ms if it has to
    make an RSA key.
    """
    now = now or utc_now()
    ca = ca or sample_ca(now)
    public_key = (key or _make_key(profile)).public_key()
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spki_sha256 = hashlib.sha256(spki).digest()
    csr, asked = _request(profile, public_key, spki_sha256, full=full)
    prepared = prepare_certificate(
        issuer=ca.issuer,
        profile=profile,
        serial=new_serial(),
        validity=choose_validity(
            now=now,
            backdate=_BACKDATE,
            lifetime=profile.validity,
            issuer=ca.issuer.certificate,
            profile=profile,
        ),
        public_key=public_key,
        spki_sha256=spki_sha256,
        names=select_names(csr, profile, asked),
    )
    return Sample(prepared, ca.issuer, ca)


def sample_ca(now: dt.datetime) -> SampleCa:
    """Make a CA with a P-256 key, for 31 years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(BY_NAME[n].oid, v) for n, v in (("C", "LA"), ("O", "Sample"), ("CN", "Sample CA"))]
    )
    start = now.replace(microsecond=0) - _DAY
    tbs = prepare_ca_certificate(
        subject=subject,
        public_key=key.public_key(),
        serial=new_serial(),
        validity=Validity(not_before=start, not_after=start + 366 * 31 * _DAY),
        issuer=None,
        path_length=None,
    )
    algorithm = signature_algorithm(key.public_key())
    der = assemble(tbs, algorithm, key.sign(tbs, *algorithm.scheme))
    issuer = Issuer.of(
        x509.load_der_x509_certificate(der),
        ocsp_url=f"{_URL}/ocsp",
        ca_issuers_url=f"{_URL}/ca/sample.cer",
        crl_url=f"{_URL}/crl/sample.crl",
    )
    return SampleCa(key=key, issuer=issuer)


def _make_key(profile: Profile) -> PrivateKey:
    if profile.keys.ec:
        return ec.generate_private_key(_CURVES[CURVES[profile.keys.ec[0]]])
    if profile.keys.rsa_bits is not None:
        return rsa.generate_private_key(65537, profile.keys.rsa_bits[0])
    return ed25519.Ed25519PrivateKey.generate()


def _request(
    profile: Profile, public_key: SigningPublicKey, spki_sha256: bytes, *, full: bool
) -> tuple[CertificationRequest, AskedNames]:
    names = {
        kind: rule
        for kind, rule in profile.names.items()
        if rule.allowed and (full or rule.presence is Presence.REQUIRED)
    }
    for group in profile.any_names:
        if not group & names.keys():
            first = min(group, key=list(profile.names).index)
            names[first] = profile.names[first]
    subject = {
        rule.kind.name: (rule.source, rule.example)
        for rule in profile.subject
        if full or rule.presence in {Presence.REQUIRED, Presence.FIXED}
    }
    for attributes in profile.any_subject:
        if not attributes & subject.keys():
            first = min(attributes, key=list(profile.attributes).index)
            subject[first] = (profile.attributes[first].source, profile.attributes[first].example)
    if profile.common_name_is_a_name and "CN" in subject and names:
        subject["CN"] = (subject["CN"][0], next(iter(names.values())).example)

    def texts(kind: str, *, csr: bool) -> tuple[str, ...]:
        rule = names.get(kind)
        return (rule.example,) if rule is not None and (rule.source is Source.CSR) == csr else ()

    with bounds_in_characters():
        in_csr = x509.Name(
            [
                x509.NameAttribute(BY_NAME[name].oid, value, _validate=False)
                for name, (source, value) in subject.items()
                if source is Source.CSR
            ]
        )
    csr = CertificationRequest(
        der=b"",
        public_key=public_key,  # type: ignore[arg-type] # Ed25519 in what certmill makes for itself
        spki_sha256=spki_sha256,
        subject=in_csr,
        dns_names=texts("dns", csr=True),
        ip_addresses=tuple(ip_address(text, "csr") for text in texts("ip", csr=True)),
        emails=texts("email", csr=True),
        uris=texts("uri", csr=True),
        other_names=0,
    )
    asked = AskedNames(
        subject=tuple((name, value) for name, (source, value) in subject.items() if source is not Source.CSR),
        dns_names=texts("dns", csr=False),
        ip_addresses=texts("ip", csr=False),
        emails=texts("email", csr=False),
        uris=texts("uri", csr=False),
    )
    return csr, asked


def sample_findings(profile: Profile) -> list[str]:
    """Make the smallest and the fullest certificate of a profile and return what our own check finds."""
    findings: list[str] = []
    for full in (False, True):
        try:
            now = utc_now()
            sample = sample_certificate(profile, full=full, now=now)
            lint_certificate(sample.prepared, sample.issuer, now=now)
        except RequesterError as error:
            findings.append(f"the examples do not go together: {error.field}: {error.detail}; {error.remedy}")
        except LintError as error:
            findings.append(f"a sample certificate is wrong: {error}")
    return list(dict.fromkeys(findings))
