"""Which signature algorithm goes with which key, as one pure table.

Algorithm identifiers are the exact bytes that BR 7.1.3.2 demands: RSA with NULL parameters, ECDSA without.
"""

import enum
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pkix.errors import SignatureMismatch, UnsupportedKey

SigningPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
SignatureHash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


class KeyAlgorithm(enum.StrEnum):
    """Kinds of CA and responder keys, by their name in configuration."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    EC_P521 = "ec-p521"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureAlgorithm:
    """A signature algorithm: its name, its AlgorithmIdentifier (DER) and its hash.

    `hash_name` is the `hashlib` name, which a signer needs that hashes before it asks the token.
    """

    name: str
    identifier_der: bytes
    hash_name: str
    hash_algorithm: SignatureHash


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()

SHA256_WITH_RSA = SignatureAlgorithm(
    name="sha256WithRSAEncryption",
    identifier_der=bytes.fromhex("300d06092a864886f70d01010b0500"),
    hash_name="sha256",
    hash_algorithm=_SHA256,
)
SHA384_WITH_RSA = SignatureAlgorithm(
    name="sha384WithRSAEncryption",
    identifier_der=bytes.fromhex("300d06092a864886f70d01010c0500"),
    hash_name="sha384",
    hash_algorithm=_SHA384,
)
ECDSA_WITH_SHA256 = SignatureAlgorithm(
    name="ecdsa-with-SHA256",
    identifier_der=bytes.fromhex("300a06082a8648ce3d040302"),
    hash_name="sha256",
    hash_algorithm=_SHA256,
)
ECDSA_WITH_SHA384 = SignatureAlgorithm(
    name="ecdsa-with-SHA384",
    identifier_der=bytes.fromhex("300a06082a8648ce3d040303"),
    hash_name="sha384",
    hash_algorithm=_SHA384,
)
ECDSA_WITH_SHA512 = SignatureAlgorithm(
    name="ecdsa-with-SHA512",
    identifier_der=bytes.fromhex("300a06082a8648ce3d040304"),
    hash_name="sha512",
    hash_algorithm=_SHA512,
)

BY_KEY_ALGORITHM: dict[KeyAlgorithm, SignatureAlgorithm] = {
    KeyAlgorithm.EC_P256: ECDSA_WITH_SHA256,
    KeyAlgorithm.EC_P384: ECDSA_WITH_SHA384,
    KeyAlgorithm.EC_P521: ECDSA_WITH_SHA512,
    KeyAlgorithm.RSA_2048: SHA256_WITH_RSA,
    KeyAlgorithm.RSA_3072: SHA256_WITH_RSA,
    KeyAlgorithm.RSA_4096: SHA384_WITH_RSA,
}

_EC_KEY_ALGORITHMS = {
    "secp256r1": KeyAlgorithm.EC_P256,
    "secp384r1": KeyAlgorithm.EC_P384,
    "secp521r1": KeyAlgorithm.EC_P521,
}
_RSA_KEY_ALGORITHMS = {
    2048: KeyAlgorithm.RSA_2048,
    3072: KeyAlgorithm.RSA_3072,
    4096: KeyAlgorithm.RSA_4096,
}


def key_algorithm(public_key: object) -> KeyAlgorithm:
    """Name the kind of a CA or responder key; raises `UnsupportedKey`."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        found = _EC_KEY_ALGORITHMS.get(public_key.curve.name)
    elif isinstance(public_key, rsa.RSAPublicKey):
        found = _RSA_KEY_ALGORITHMS.get(public_key.key_size)
    else:
        found = None
    if found is None:
        raise UnsupportedKey(f"no signature algorithm for {type(public_key).__name__}")
    return found


def signature_algorithm(public_key: object) -> SignatureAlgorithm:
    """Choose the signature algorithm that a key signs with; raises `UnsupportedKey`."""
    return BY_KEY_ALGORITHM[key_algorithm(public_key)]


def verify_signature(public_key: SigningPublicKey, tbs: bytes, signature: bytes) -> None:
    """Verify `signature` (PKCS #1 v1.5, or DER Ecdsa-Sig-Value) over `tbs`; raises `SignatureMismatch`.

    Cost: about 25 µs for RSA-2048, 60 µs for P-256.
    """
    algorithm = signature_algorithm(public_key)
    try:
        if isinstance(public_key, rsa.RSAPublicKey):
            public_key.verify(signature, tbs, padding.PKCS1v15(), algorithm.hash_algorithm)
        else:
            public_key.verify(signature, tbs, ec.ECDSA(algorithm.hash_algorithm))
    except InvalidSignature as error:
        raise SignatureMismatch(f"{algorithm.name} signature does not verify") from error
