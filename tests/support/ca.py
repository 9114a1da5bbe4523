"""A CA with software keys, for tests of what needs an issuer but no token."""

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pkix.algorithms import signature_algorithm
from pkix.certificate import Validity, prepare_ca_certificate
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.unsigned import assemble

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
NOW = dt.datetime(2026, 11, 23, 12, 0, 0, tzinfo=dt.UTC)
URL = "http://pki.test"


def sign(key: PrivateKey, tbs: bytes) -> bytes:
    """Sign as the pool does: with the algorithm that goes with the key."""
    return key.sign(tbs, *signature_algorithm(key.public_key()).scheme)


@dataclass(frozen=True)
class TestCa:
    """A self-signed CA and its private key."""

    __test__ = False

    key: PrivateKey
    issuer: Issuer

    def sign(self, tbs: bytes) -> bytes:
        return sign(self.key, tbs)


def make_ca(key: PrivateKey | None = None, *, days: int = 3650, now: dt.datetime = NOW) -> TestCa:
    """Make a CA that is valid from a day before `now`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    start = now - dt.timedelta(days=1)
    tbs = prepare_ca_certificate(
        subject=name,
        public_key=key.public_key(),
        serial=SerialNumber(1 << 100),
        validity=Validity(not_before=start, not_after=start + dt.timedelta(days=days)),
        issuer=None,
        path_length=None,
    )
    der = assemble(tbs, signature_algorithm(key.public_key()), sign(key, tbs))
    issuer = Issuer.of(
        x509.load_der_x509_certificate(der),
        ocsp_url=f"{URL}/ocsp",
        ca_issuers_url=f"{URL}/ca/test.cer",
        crl_url=f"{URL}/crl/test.crl",
    )
    return TestCa(key=key, issuer=issuer)


def make_csr(
    common_name: str | None = "www.example.gov",
    *,
    key: PrivateKey | None = None,
    names: tuple[x509.GeneralName, ...] = (),
    extra: tuple[x509.NameAttribute[str], ...] = (),
    encoding: Encoding = Encoding.PEM,
) -> bytes:
    """Make a CSR as a ministry system would."""
    attributes = list(extra)
    if common_name is not None:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(encoding)
