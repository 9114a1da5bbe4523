"""CAs of every kind of key and every signature algorithm, with software keys."""

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pkix.algorithms import KeyAlgorithm, SignatureAlgorithm
from pkix.certificate import Validity, prepare_ca_certificate
from pkix.issuer import Issuer
from pkix.names import SerialNumber
from pkix.unsigned import assemble
from tests.support.ca import NOW, URL

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_CURVES: dict[KeyAlgorithm, ec.EllipticCurve] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1(),
    KeyAlgorithm.EC_P384: ec.SECP384R1(),
    KeyAlgorithm.EC_P521: ec.SECP521R1(),
}


def generate(kind: KeyAlgorithm) -> PrivateKey:
    if kind is KeyAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    if kind in _CURVES:
        return ec.generate_private_key(_CURVES[kind])
    return rsa.generate_private_key(65537, int(kind.removeprefix("rsa-")))


@dataclass(frozen=True)
class Authority:
    """A self-signed CA that signs everything with its issuer's algorithm."""

    key: PrivateKey
    issuer: Issuer

    def sign(self, tbs: bytes) -> bytes:
        return self.key.sign(tbs, *self.issuer.algorithm.scheme)


def make_authority(key: PrivateKey, algorithm: SignatureAlgorithm) -> Authority:
    tbs = prepare_ca_certificate(
        subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"CA {algorithm.name}")]),
        public_key=key.public_key(),
        serial=SerialNumber(1 << 100),
        validity=Validity(not_before=NOW - dt.timedelta(days=1), not_after=NOW + dt.timedelta(days=3650)),
        issuer=None,
        path_length=None,
        self_signed_with=algorithm,
    )
    der = assemble(tbs, algorithm, key.sign(tbs, *algorithm.scheme))
    issuer = Issuer.of(
        x509.load_der_x509_certificate(der),
        ocsp_url=f"{URL}/ocsp",
        ca_issuers_url=f"{URL}/ca/test.cer",
        crl_url=f"{URL}/crl/test.crl",
        algorithm_name=algorithm.name,
    )
    return Authority(key=key, issuer=issuer)
