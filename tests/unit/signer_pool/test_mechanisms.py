"""The table of mechanisms, and the encodings that differ from X.509's."""

import random

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import MGF, Mechanism

from pkix.algorithms import SIGNATURE_ALGORITHMS, KeyAlgorithm, SignatureFamily
from signer_pool.mechanisms import (
    CURVES,
    ED25519_PARAMETERS,
    RSA_BITS,
    SIGNING_MECHANISMS,
    PssParameter,
    SigningMechanism,
    ecdsa_sig_value,
    ed25519_spki,
)

# CKM_ numbers of PKCS #11 v3.1, pkcs11t.h: written out, so that no name can mean another mechanism.
NUMBERS = {
    "sha256WithRSAEncryption": 0x40,
    "sha384WithRSAEncryption": 0x41,
    "rsassa-pss-sha256": 0x43,
    "rsassa-pss-sha384": 0x44,
    "rsassa-pss-sha512": 0x45,
    "ecdsa-with-SHA256": 0x1041,
    "ecdsa-with-SHA384": 0x1041,
    "ecdsa-with-SHA512": 0x1041,
    "ed25519": 0x1057,
}


def test_no_signature_algorithm_is_without_mechanism() -> None:
    assert list(SIGNING_MECHANISMS) == list(SIGNATURE_ALGORITHMS)


@pytest.mark.parametrize("name", list(SIGNING_MECHANISMS))
def test_row_agrees_with_the_signature_algorithm(name: str) -> None:
    row, algorithm = SIGNING_MECHANISMS[name], SIGNATURE_ALGORITHMS[name]
    assert Mechanism[row.mechanism].value == NUMBERS[name]
    # Who hashes: we for ECDSA, the token for RSA, nobody for Ed25519.
    is_ecdsa = algorithm.family is SignatureFamily.ECDSA
    assert row.ecdsa is is_ecdsa
    assert row.digest == (algorithm.hash_name if is_ecdsa else None)
    if not isinstance(algorithm.rsa_padding, padding.PSS):
        assert row.pss is None
        return
    assert algorithm.hash_algorithm is not None
    hashed = algorithm.hash_algorithm.name.upper()
    assert row.pss == PssParameter(hashed=hashed, salt_bytes=algorithm.hash_algorithm.digest_size)
    assert algorithm.rsa_padding._salt_length == row.pss.salt_bytes
    assert algorithm.rsa_padding.mgf._algorithm.name.upper() == hashed
    assert MGF[hashed].name == hashed


@pytest.mark.parametrize("name", ["sha256WithRSAEncryption", "sha384WithRSAEncryption", "ed25519"])
def test_plain_rows_hand_the_tbs_to_the_token(name: str) -> None:
    assert SIGNING_MECHANISMS[name] == SigningMechanism(mechanism=SIGNING_MECHANISMS[name].mechanism)


def test_every_kind_of_key_can_be_generated() -> None:
    assert {*CURVES, *RSA_BITS, KeyAlgorithm.ED25519} == set(KeyAlgorithm)
    assert all(name.value == f"rsa-{bits}" for name, bits in RSA_BITS.items())
    assert all(curve[4:7] == name.value.removeprefix("ec-p") for name, curve in CURVES.items())
    assert ED25519_PARAMETERS == b"\x13\x0cedwards25519"


@pytest.mark.parametrize("size", [32, 48, 66])
def test_ecdsa_signatures_are_der(size: int) -> None:
    chance = random.Random(size)
    numbers = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 256**size - 1, 256**size // 2]
    numbers += [chance.getrandbits(chance.randrange(size * 8)) for _ in range(200)]
    for r, s in zip(numbers, reversed(numbers), strict=True):
        raw = r.to_bytes(size, "big") + s.to_bytes(size, "big")
        assert ecdsa_sig_value(raw) == encode_dss_signature(r, s)


@pytest.mark.parametrize("size", [1, 63, 131, 133, 134, 248, 600, 8192, 2**17])
def test_what_cannot_be_an_ecdsa_signature_is_left_to_the_verification(size: int) -> None:
    assert ecdsa_sig_value(b"\xff" * size) == b"\xff" * size


@pytest.mark.parametrize("size", range(0, 133, 2))
def test_any_even_length_up_to_the_largest_curve_is_der(size: int) -> None:
    for octet in (b"\0", b"\x7f", b"\xff"):
        number = int.from_bytes(octet * (size // 2), "big")
        assert ecdsa_sig_value(octet * size) == encode_dss_signature(number, number)


@pytest.mark.parametrize("first", [b"\x04\x20", b"\x04", b"\x00"])
def test_ed25519_point_with_and_without_its_octet_string(first: bytes) -> None:
    """A point may itself begin like the head of an OCTET STRING: the length tells."""
    point = first + bytes(32 - len(first))
    der = ed25519.Ed25519PublicKey.from_public_bytes(point).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    assert ed25519_spki(point) == der
    assert ed25519_spki(b"\x04\x20" + point) == der


@pytest.mark.parametrize("octets", [b"", bytes(31), bytes(33), bytes(34), b"\x04\x20" + bytes(31)])
def test_what_is_no_ed25519_point(octets: bytes) -> None:
    with pytest.raises(ValueError, match="no Ed25519 point"):
        ed25519_spki(octets)
