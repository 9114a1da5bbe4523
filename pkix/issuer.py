"""A certificate authority as the rest of the code sees it: its certificate and what it writes into others."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey, algorithm_for
from pkix.errors import UnsupportedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """An issuing CA: certificate, key and the extensions that every certificate under it shares.

    `access` is authority information access by what it names: "ocsp", "issuers" or both. `name_der` and `spki_der`
    are its subject and its SubjectPublicKeyInfo.
    """

    certificate: x509.Certificate
    certificate_pem: str
    public_key: SigningPublicKey
    name_der: bytes
    spki_der: bytes
    algorithm: SignatureAlgorithm
    authority_key_identifier: x509.AuthorityKeyIdentifier
    access: Mapping[frozenset[str], x509.AuthorityInformationAccess]
    crl_distribution_points: x509.CRLDistributionPoints

    @classmethod
    def of(
        cls,
        certificate: x509.Certificate,
        *,
        ocsp_url: str,
        ca_issuers_url: str,
        crl_url: str,
        algorithm_name: str | None = None,
    ) -> Self:
        """Describe the CA that holds `certificate` and signs as `algorithm_for` says; raises `UnsupportedKey`."""
        public_key = signing_public_key(certificate)
        ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        ocsp = _access(AuthorityInformationAccessOID.OCSP, ocsp_url)
        issuers = _access(AuthorityInformationAccessOID.CA_ISSUERS, ca_issuers_url)
        return cls(
            certificate=certificate,
            certificate_pem=certificate.public_bytes(Encoding.PEM).decode("ascii"),
            public_key=public_key,
            name_der=certificate.subject.public_bytes(),
            spki_der=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            algorithm=algorithm_for(public_key, algorithm_name),
            authority_key_identifier=x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski),
            access={
                frozenset({"ocsp", "issuers"}): x509.AuthorityInformationAccess([ocsp, issuers]),
                frozenset({"ocsp"}): x509.AuthorityInformationAccess([ocsp]),
                frozenset({"issuers"}): x509.AuthorityInformationAccess([issuers]),
            },
            crl_distribution_points=crl_distribution_points(crl_url),
        )

    @property
    def certificate_der(self) -> bytes:
        """The CA certificate (DER)."""
        return self.certificate.public_bytes(Encoding.DER)

    def hashes(self, name: str) -> tuple[bytes, bytes]:
        """Return issuerNameHash and issuerKeyHash under the hash called `name` (RFC 6960 §4.1.1)."""
        digest = hashlib.new(name, usedforsecurity=False)
        digest.update(self.certificate.subject.public_bytes())
        key_digest = hashlib.new(name, usedforsecurity=False)
        key_digest.update(_key_bits(self.public_key))
        return digest.digest(), key_digest.digest()


def _access(method: x509.ObjectIdentifier, url: str) -> x509.AccessDescription:
    return x509.AccessDescription(method, x509.UniformResourceIdentifier(url))


def crl_distribution_points(url: str) -> x509.CRLDistributionPoints:
    """Build the extension with one HTTP URI (RFC 5280 §4.2.1.13)."""
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)
    return x509.CRLDistributionPoints([point])


def signing_public_key(certificate: x509.Certificate) -> SigningPublicKey:
    """Return the key of a CA or responder certificate; raises `UnsupportedKey`."""
    public_key = certificate.public_key()
    if not isinstance(public_key, SigningPublicKey):
        raise UnsupportedKey(f"no signature algorithm for {type(public_key).__name__}")
    return public_key


def _key_bits(public_key: SigningPublicKey) -> bytes:
    """Return the value of subjectPublicKey's BIT STRING, which issuerKeyHash is made of."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return public_key.public_bytes_raw()
