import dataclasses

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS, PKCS1v15
from cryptography.hazmat.primitives.serialization import Encoding

from pkix.algorithms import (
    BY_KEY_ALGORITHM,
    ECDSA_WITH_SHA256,
    ECDSA_WITH_SHA384,
    ED25519,
    RSASSA_PSS_SHA256,
    SHA256_WITH_RSA,
    SHA384_WITH_RSA,
    SIGNATURE_ALGORITHMS,
    KeyAlgorithm,
    RsaPadding,
    SignatureAlgorithm,
    SignatureFamily,
    SignatureHash,
    algorithm_for,
    key_algorithm,
    signature_algorithm,
    verify_signature,
)
from pkix.errors import SignatureMismatch, UnsupportedKey
from pkix.unsigned import capture_tbs
from tests.support.ca import NOW
from tests.unit.pkix.authorities import PrivateKey

SHA256, SHA384, SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()
ROWS = [pytest.param(row, id=row.name) for row in SIGNATURE_ALGORITHMS.values()]

# BR 7.1.3.2.1 and 7.1.3.2.2 print these bytes; the last is RFC 8410 §3.
IDENTIFIERS = {
    "sha256WithRSAEncryption": "300d06092a864886f70d01010b0500",
    "sha384WithRSAEncryption": "300d06092a864886f70d01010c0500",
    "rsassa-pss-sha256": "304106092a864886f70d01010a3034a00f300d0609608648016503040201"
    "0500a11c301a06092a864886f70d010108300d0609608648016503040201"
    "0500a203020120",
    "rsassa-pss-sha384": "304106092a864886f70d01010a3034a00f300d0609608648016503040202"
    "0500a11c301a06092a864886f70d010108300d0609608648016503040202"
    "0500a203020130",
    "rsassa-pss-sha512": "304106092a864886f70d01010a3034a00f300d0609608648016503040203"
    "0500a11c301a06092a864886f70d010108300d0609608648016503040203"
    "0500a203020140",
    "ecdsa-with-SHA256": "300a06082a8648ce3d040302",
    "ecdsa-with-SHA384": "300a06082a8648ce3d040303",
    "ecdsa-with-SHA512": "300a06082a8648ce3d040304",
    "ed25519": "300506032b6570",
}
# What `cryptography` is told, so that it writes and signs the same without our table.
ASKED: dict[str, tuple[SignatureHash | None, RsaPadding | None]] = {
    "sha256WithRSAEncryption": (SHA256, PKCS1v15()),
    "sha384WithRSAEncryption": (SHA384, PKCS1v15()),
    "rsassa-pss-sha256": (SHA256, PSS(MGF1(SHA256), salt_length=PSS.DIGEST_LENGTH)),
    "rsassa-pss-sha384": (SHA384, PSS(MGF1(SHA384), salt_length=PSS.DIGEST_LENGTH)),
    "rsassa-pss-sha512": (SHA512, PSS(MGF1(SHA512), salt_length=PSS.DIGEST_LENGTH)),
    "ecdsa-with-SHA256": (SHA256, None),
    "ecdsa-with-SHA384": (SHA384, None),
    "ecdsa-with-SHA512": (SHA512, None),
    "ed25519": (None, None),
}


NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])


def certificate_builder(key: PrivateKey) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(NAME).issuer_name(NAME).public_key(key.public_key())
    return builder.serial_number(5).not_valid_before(NOW).not_valid_after(NOW)


def signed_by_cryptography(row: SignatureAlgorithm, key: PrivateKey) -> x509.Certificate:
    hash_algorithm, padding = ASKED[row.name]
    return certificate_builder(key).sign(key, hash_algorithm, rsa_padding=padding)


@pytest.mark.parametrize("row", ROWS)
def test_identifiers_are_the_bytes_that_cryptography_writes(
    row: SignatureAlgorithm, key_of: dict[str, PrivateKey]
) -> None:
    certificate = signed_by_cryptography(row, key_of[row.name])
    tbs = certificate.tbs_certificate_bytes
    after_tbs = certificate.public_bytes(Encoding.DER).partition(tbs)[2]
    assert row.identifier_der.hex() == IDENTIFIERS[row.name]
    assert after_tbs.startswith(row.identifier_der)
    assert row.identifier_der in tbs


@pytest.mark.parametrize("row", ROWS)
def test_what_is_captured_is_what_cryptography_signs(
    row: SignatureAlgorithm, key_of: dict[str, PrivateKey]
) -> None:
    key = key_of[row.name]
    certificate = signed_by_cryptography(row, key)
    assert capture_tbs(certificate_builder(key), key.public_key(), row) == certificate.tbs_certificate_bytes
    builder = x509.CertificateRevocationListBuilder().issuer_name(NAME).last_update(NOW).next_update(NOW)
    hash_algorithm, padding = ASKED[row.name]
    crl = builder.sign(key, hash_algorithm, rsa_padding=padding)
    assert capture_tbs(builder, key.public_key(), row) == crl.tbs_certlist_bytes


@pytest.mark.parametrize("row", ROWS)
def test_a_signature_verifies_and_one_with_a_flipped_bit_does_not(
    row: SignatureAlgorithm, key_of: dict[str, PrivateKey]
) -> None:
    public_key = key_of[row.name].public_key()
    certificate = signed_by_cryptography(row, key_of[row.name])
    tbs, signature = certificate.tbs_certificate_bytes, certificate.signature
    verify_signature(public_key, tbs, signature, row)
    verify_signature(public_key, tbs, key_of[row.name].sign(tbs, *row.scheme), row)
    flipped = signature[:-1] + bytes((signature[-1] ^ 1,))
    for wrong, over in ((flipped, tbs), (signature, tbs + b"x"), (signature[:-1], tbs), (b"", tbs)):
        with pytest.raises(SignatureMismatch, match=row.name):
            verify_signature(public_key, over, wrong, row)


@pytest.mark.parametrize("row", ROWS)
def test_rows_say_what_a_signer_needs(row: SignatureAlgorithm) -> None:
    hash_algorithm, padding = ASKED[row.name]
    assert row.hash_name == (None if hash_algorithm is None else hash_algorithm.name)
    assert (row.rsa_padding is None) == (padding is None)
    assert isinstance(row.rsa_padding, PSS) == (row.family is SignatureFamily.RSA_PSS)
    assert isinstance(row.rsa_padding, PKCS1v15) == (row.family is SignatureFamily.RSA_PKCS1)
    assert SIGNATURE_ALGORITHMS[row.name] is row
    assert len({row, dataclasses.replace(row)}) == 1


@pytest.mark.parametrize("kind", list(KeyAlgorithm))
def test_every_kind_of_key_verifies_with_its_default(
    kind: KeyAlgorithm, key_of_kind: dict[KeyAlgorithm, PrivateKey]
) -> None:
    key = key_of_kind[kind]
    default = BY_KEY_ALGORITHM[kind]
    assert key_algorithm(key.public_key()) is kind
    assert signature_algorithm(key.public_key()) is default
    assert algorithm_for(key.public_key(), None) is default
    verify_signature(key.public_key(), b"tbs", key.sign(b"tbs", *default.scheme))


@pytest.mark.parametrize("kind", list(KeyAlgorithm))
def test_a_key_signs_with_its_own_rows_and_no_other(
    kind: KeyAlgorithm, key_of_kind: dict[KeyAlgorithm, PrivateKey]
) -> None:
    public_key = key_of_kind[kind].public_key()
    for name, row in SIGNATURE_ALGORITHMS.items():
        if kind.startswith("rsa-") == row.family.startswith("rsa-") and (
            kind.startswith("rsa-") or row is BY_KEY_ALGORITHM[kind]
        ):
            assert algorithm_for(public_key, name) is row
        else:
            with pytest.raises(UnsupportedKey, match=f"{kind} does not sign with '{name}'"):
                algorithm_for(public_key, name)
    with pytest.raises(UnsupportedKey, match="md5WithRSAEncryption"):
        algorithm_for(public_key, "md5WithRSAEncryption")


def test_a_signature_of_one_rsa_row_is_none_of_another(rsa_key: rsa.RSAPrivateKey) -> None:
    for row, other in ((RSASSA_PSS_SHA256, SHA256_WITH_RSA), (SHA256_WITH_RSA, SHA384_WITH_RSA)):
        signature = rsa_key.sign(b"tbs", *row.scheme)
        with pytest.raises(SignatureMismatch, match=other.name):
            verify_signature(rsa_key.public_key(), b"tbs", signature, other)


def test_a_row_of_another_kind_of_key_never_verifies(key_of_kind: dict[KeyAlgorithm, PrivateKey]) -> None:
    ec_key, ed_key = key_of_kind[KeyAlgorithm.EC_P256], key_of_kind[KeyAlgorithm.ED25519]
    rsa_key = key_of_kind[KeyAlgorithm.RSA_2048]
    for key, row in (
        (ec_key, ED25519),
        (ec_key, SHA256_WITH_RSA),
        (ed_key, ECDSA_WITH_SHA256),
        (ed_key, SHA256_WITH_RSA),
        (rsa_key, ED25519),
        (rsa_key, ECDSA_WITH_SHA256),
    ):
        signature = key.sign(b"tbs", *signature_algorithm(key.public_key()).scheme)
        with pytest.raises(TypeError):
            verify_signature(key.public_key(), b"tbs", signature, row)
    with pytest.raises(SignatureMismatch):
        verify_signature(
            ec_key.public_key(), b"tbs", ec_key.sign(b"tbs", *ECDSA_WITH_SHA256.scheme), ECDSA_WITH_SHA384
        )


def test_other_kinds_of_keys_have_no_algorithm() -> None:
    for public_key in (
        ed448.Ed448PrivateKey.generate().public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 1024).public_key(),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        with pytest.raises(UnsupportedKey):
            signature_algorithm(public_key)
        with pytest.raises(UnsupportedKey):
            algorithm_for(public_key, "ed25519")
