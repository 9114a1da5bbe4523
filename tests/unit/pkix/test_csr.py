import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from pkix.algorithms import ECDSA_WITH_SHA256
from pkix.csr import MAX_CSR_BYTES, parse_csr, request_der
from pkix.errors import KeyRejected, MalformedCsr, ProofOfPossessionFailed, RequesterError
from pkix.keys import check_subject_key
from pkix.unsigned import tlv
from tests.support.ca import make_csr, sign

GOOD = make_csr(encoding=Encoding.DER)


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_request_der_is_what_parsing_keeps(encoding: Encoding) -> None:
    csr = make_csr(encoding=encoding)
    assert request_der(csr) == parse_csr(csr).der


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_both_encodings_give_the_same_request(encoding: Encoding) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = (
        x509.DNSName("a.example.gov"),
        x509.IPAddress(ipaddress.ip_address("192.0.2.1")),
        x509.RFC822Name("a@example.gov"),
        x509.UniformResourceIdentifier("https://example.gov/7"),
        x509.RegisteredID(x509.NameOID.COMMON_NAME),
    )
    request = parse_csr(make_csr(key=key, names=names, encoding=encoding))
    assert request.dns_names == ("a.example.gov",)
    assert request.ip_addresses == (ipaddress.ip_address("192.0.2.1"),)
    assert request.emails == ("a@example.gov",)
    assert request.uris == ("https://example.gov/7",)
    assert request.other_names == 1
    assert request.public_key == key.public_key()


@pytest.mark.parametrize("second", ["2a864886f70d01090e", "2b0601040182370201 0e"])
def test_a_second_list_of_extensions_is_not_dropped_silently(second: str) -> None:
    def asking(oid: str, host: bytes) -> bytes:
        name = tlv(0x30, tlv(0x06, bytes.fromhex("551d11")) + tlv(0x04, tlv(0x30, tlv(0x82, host))))
        return tlv(0x30, tlv(0x06, bytes.fromhex(oid)) + tlv(0x31, tlv(0x30, name)))

    def request(attributes: bytes) -> bytes:
        key = ec.generate_private_key(ec.SECP256R1())
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        info = tlv(0x30, b"\x02\x01\x00\x30\x00" + spki + tlv(0xA0, attributes))
        return tlv(0x30, info + ECDSA_WITH_SHA256.identifier_der + tlv(0x03, b"\x00" + sign(key, info)))

    first = asking("2a864886f70d01090e", b"a.example.gov")
    assert parse_csr(request(first)).dns_names == ("a.example.gov",)
    with pytest.raises(MalformedCsr, match="two lists"):
        parse_csr(request(first + asking(second, b"b.example.gov")))


def test_a_flipped_bit_in_the_signature_fails_the_proof_of_possession() -> None:
    broken = GOOD[:-1] + bytes((GOOD[-1] ^ 1,))
    with pytest.raises(ProofOfPossessionFailed) as caught:
        parse_csr(broken)
    assert caught.value.field == "csr"
    assert "private key" in caught.value.remedy


def test_another_subject_than_the_signed_one_fails_the_proof_of_possession() -> None:
    with pytest.raises(ProofOfPossessionFailed):
        parse_csr(GOOD.replace(b"www.example.gov", b"www.exbmple.gov"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n",
        GOOD[:-5],
        GOOD + b"\0",
        b"0" * MAX_CSR_BYTES * 2,
    ],
)
def test_what_is_no_request_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedCsr):
        parse_csr(data)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_every_single_byte_change_is_refused(position: int, value: int) -> None:
    changed = GOOD[:position] + bytes((value,)) + GOOD[position + 1 :]
    if changed != GOOD:
        with pytest.raises(RequesterError):
            parse_csr(changed)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_typed_error(data: bytes) -> None:
    with pytest.raises(RequesterError):
        parse_csr(data)


@pytest.mark.parametrize("bits", [1024, 2040])
def test_short_rsa_keys_are_rejected(bits: int) -> None:
    with pytest.raises(KeyRejected):
        parse_csr(make_csr(key=rsa.generate_private_key(65537, bits)))


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP224R1()])
def test_other_curves_are_rejected(curve: ec.EllipticCurve) -> None:
    with pytest.raises(KeyRejected):
        parse_csr(make_csr(key=ec.generate_private_key(curve)))


def test_other_kinds_of_keys_are_rejected() -> None:
    with pytest.raises(KeyRejected):
        check_subject_key(ed25519.Ed25519PrivateKey.generate().public_key())


def _rsa(n: int, e: int) -> rsa.RSAPublicKey:
    return rsa.RSAPublicNumbers(e, n).public_key()


def test_weak_rsa_numbers_are_rejected() -> None:
    good = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n
    assert check_subject_key(_rsa(good, 65537)).key_size == 2048
    with pytest.raises(KeyRejected, match="exponent"):
        check_subject_key(_rsa(good, 3))
    with pytest.raises(KeyRejected, match="small factor"):
        check_subject_key(_rsa((good // 3) * 3 | 1 if ((good // 3) * 3) % 2 else (good // 3) * 3 + 3, 65537))
    with pytest.raises(KeyRejected, match="8200 bits"):
        check_subject_key(_rsa((1 << 8199) + 1, 65537))


def test_an_invalid_curve_point_never_loads() -> None:
    spki = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + b"\x04" + b"\x01" * 64
    with pytest.raises(ValueError, match=r"[Ii]nvalid"):
        load_der_public_key(spki)
