import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pkix.algorithms import (
    BY_KEY_ALGORITHM,
    KeyAlgorithm,
    key_algorithm,
    signature_algorithm,
    verify_signature,
)
from pkix.errors import SignatureMismatch, UnsupportedKey
from tests.support.ca import sign

# BR 7.1.3.2.1 and 7.1.3.2.2 print these bytes.
BR_IDENTIFIERS = {
    "sha256WithRSAEncryption": "300d06092a864886f70d01010b0500",
    "sha384WithRSAEncryption": "300d06092a864886f70d01010c0500",
    "ecdsa-with-SHA256": "300a06082a8648ce3d040302",
    "ecdsa-with-SHA384": "300a06082a8648ce3d040303",
    "ecdsa-with-SHA512": "300a06082a8648ce3d040304",
}


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_identifiers_are_the_bytes_of_the_baseline_requirements(algorithm: KeyAlgorithm) -> None:
    chosen = BY_KEY_ALGORITHM[algorithm]
    assert chosen.identifier_der.hex() == BR_IDENTIFIERS[chosen.name]
    assert chosen.hash_algorithm.name == chosen.hash_name


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (ec.SECP256R1(), KeyAlgorithm.EC_P256),
        (ec.SECP384R1(), KeyAlgorithm.EC_P384),
        (ec.SECP521R1(), KeyAlgorithm.EC_P521),
    ],
)
def test_each_curve_signs_and_verifies_with_its_own_hash(curve: ec.EllipticCurve, expected: KeyAlgorithm) -> None:
    key = ec.generate_private_key(curve)
    assert key_algorithm(key.public_key()) is expected
    verify_signature(key.public_key(), b"tbs", sign(key, b"tbs"))


def test_a_flipped_bit_is_a_mismatch(rsa_key: rsa.RSAPrivateKey) -> None:
    ec_key = ec.generate_private_key(ec.SECP256R1())
    for key in (rsa_key, ec_key):
        signature = bytearray(sign(key, b"tbs"))
        signature[-1] ^= 1
        with pytest.raises(SignatureMismatch):
            verify_signature(key.public_key(), b"tbs", bytes(signature))


def test_other_kinds_of_keys_have_no_algorithm() -> None:
    for public_key in (
        ed25519.Ed25519PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 1024).public_key(),
    ):
        with pytest.raises(UnsupportedKey):
            signature_algorithm(public_key)
