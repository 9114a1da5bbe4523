"""OCSP requests: the decoder's limits, and the template as a strict subset of it."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given
from hypothesis import strategies as st

from pkix.errors import MalformedOcspRequest
from pkix.ocsp_request import LONGEST_TEMPLATE, UnknownCertIdHash, decode_request, template_match
from pkix.unsigned import tlv

ALGORITHMS = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}
SHA1_WITH_NULL = bytes.fromhex("300906052b0e03021a0500")
SHA1_WITHOUT = bytes.fromhex("300706052b0e03021a")


def request_der(
    algorithm: hashes.HashAlgorithm, serial: int = 0x5F1C, nonce: bytes | None = None, *, fill: bytes = b"\x01"
) -> bytes:
    size = algorithm.digest_size
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(fill * size, b"\x02" * size, serial, algorithm)
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def hand_made(algorithm: bytes, serial: bytes, *, certificates: int = 1) -> bytes:
    """Write a request octet by octet: what no well-behaved library would."""
    one = tlv(0x30, tlv(0x30, algorithm + b"\x04\x14" + b"\x01" * 20 + b"\x04\x14" + b"\x02" * 20 + serial))
    return tlv(0x30, tlv(0x30, tlv(0x30, one * certificates)))


@pytest.mark.parametrize("name", ["sha1", "sha256"])
@pytest.mark.parametrize("serial", [1, 0x7F, 0x80, 0xFF00, (1 << 159) - 1])
def test_usual_request_is_read_alike_by_both(name: str, serial: int) -> None:
    der = request_der(ALGORITHMS[name], serial)
    cert_id = decode_request(der).cert_id
    assert (cert_id.hash_algorithm, cert_id.serial) == (name, serial)
    assert len(cert_id.issuer_hashes) == {"sha1": 40, "sha256": 64}[name]
    assert template_match(der) == (cert_id.issuer_hashes, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))


def test_absent_parameters_of_the_hash_are_taken_too() -> None:
    with_null, without = (hand_made(a, b"\x02\x01\x05") for a in (SHA1_WITH_NULL, SHA1_WITHOUT))
    assert with_null == request_der(ALGORITHMS["sha1"], 5)
    assert template_match(without) == template_match(with_null)
    assert decode_request(without) == decode_request(with_null)


@pytest.mark.parametrize("octets", [1, 15, 16, 32, 33, 128])
def test_nonce_is_accepted_but_not_on_the_fast_path(octets: int) -> None:
    der = request_der(ALGORITHMS["sha1"], nonce=b"n" * octets)
    assert decode_request(der).nonce == b"n" * octets
    assert template_match(der) is None


@pytest.mark.parametrize("octets", [0, 129, 5000])
def test_nonce_of_a_forbidden_length_is_malformed(octets: int) -> None:
    der = request_der(ALGORITHMS["sha1"], nonce=b"n" * octets)
    with pytest.raises(MalformedOcspRequest):
        decode_request(der)
    assert template_match(der) is None


@pytest.mark.parametrize("algorithm", [hashes.SHA384(), hashes.SHA512()])
def test_other_hashes_are_told_apart_from_nonsense(algorithm: hashes.HashAlgorithm) -> None:
    with pytest.raises(UnknownCertIdHash):
        decode_request(request_der(algorithm))


def test_hash_nobody_knows() -> None:
    md2_oid = tlv(0x30, bytes.fromhex("06082a864886f70d0202") + b"\x05\x00")
    with pytest.raises(UnknownCertIdHash):
        decode_request(hand_made(md2_oid, b"\x02\x01\x05"))


@pytest.mark.parametrize(
    "der",
    [
        b"",
        b"\x30",
        b"\x30\x00",
        b"x" * 69,
        request_der(ALGORITHMS["sha1"]) + b"\0",
        request_der(ALGORITHMS["sha1"])[:-1],
        hand_made(SHA1_WITH_NULL, b"\x02\x01\x05", certificates=2),
        hand_made(SHA1_WITH_NULL, b"\x02\x01\x05", certificates=0),
        hand_made(tlv(0x30, bytes.fromhex("0609608648016503040201")), b"\x02\x01\x05"),
        hand_made(SHA1_WITH_NULL, b"\x02\x00"),
    ],
    ids=["empty", "half", "nothing", "text", "more", "less", "two", "none", "short hashes", "no serial"],
)
def test_anything_else_is_malformed(der: bytes) -> None:
    with pytest.raises(MalformedOcspRequest):
        decode_request(der)
    assert template_match(der) is None


@pytest.mark.parametrize("serial", [b"\x02\x01\x00", b"\x02\x01\x80", b"\x02\x02\x00\x05", b"\x02\x02\xff\x05"])
def test_serials_that_are_not_positive_or_not_minimal_are_for_the_decoder(serial: bytes) -> None:
    assert template_match(hand_made(SHA1_WITH_NULL, serial)) is None


@given(
    sample=st.sampled_from([request_der(a, s) for a in ALGORITHMS.values() for s in (5, 0xFF00, 1 << 120)]),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 3),
    more=st.binary(max_size=3),
)
def test_template_is_a_strict_subset_of_the_decoder(
    sample: bytes, changes: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    der = bytearray(sample)
    for place, value in changes:
        der[place % len(der)] = value
    _same(bytes(der[: len(der) - cut]) + more)


@given(st.binary(max_size=LONGEST_TEMPLATE))
def test_noise_never_matches_what_the_decoder_refuses(noise: bytes) -> None:
    _same(noise)


def _same(der: bytes) -> None:
    """Whatever the template takes, the decoder reads as the same question."""
    matched = template_match(der)
    if matched is not None:
        cert_id = decode_request(der).cert_id
        assert matched == (cert_id.issuer_hashes, cert_id.serial.to_bytes(len(matched[1]), "big"))
