"""Which PKCS #11 mechanism makes which signature: a pure table, and the encodings that differ from X.509's.

Names are those of PKCS #11 without CKM_; signer_pool/pkcs11_session.py gives them their numbers.
"""

from dataclasses import dataclass

from pkix.algorithms import KeyAlgorithm

_ED25519_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410 §4
_ED25519_OCTETS = 32
_ECDSA_OCTETS = 2 * 66  # r‖s of P-521, the largest
_OCTET_STRING_HEAD = b"\x04\x20"
ED25519_PARAMETERS = bytes.fromhex("130c656477617264733235353139")  # PrintableString edwards25519 (v3.0 §2.3.10)

CURVES = {
    KeyAlgorithm.EC_P256: "secp256r1",
    KeyAlgorithm.EC_P384: "secp384r1",
    KeyAlgorithm.EC_P521: "secp521r1",
}
RSA_BITS = {KeyAlgorithm.RSA_2048: 2048, KeyAlgorithm.RSA_3072: 3072, KeyAlgorithm.RSA_4096: 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class PssParameter:
    """CK_RSA_PKCS_PSS_PARAMS: the hash, MGF1 over the same hash, and the length of the salt."""

    hashed: str
    salt_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningMechanism:
    """How a signature algorithm is asked of a token.

    `digest`: the `hashlib` name of the hash that the token is given, None where it takes the TBS itself.
    `ecdsa`: the token answers r‖s, which X.509 wants as DER.
    """

    mechanism: str
    digest: str | None = None
    pss: PssParameter | None = None
    ecdsa: bool = False


def _ecdsa(digest: str) -> SigningMechanism:
    # CKM_ECDSA over a digest: every token has it; the combined CKM_ECDSA_SHA… many (SoftHSM 2.6) have not.
    return SigningMechanism(mechanism="ECDSA", digest=digest, ecdsa=True)


def _pss(hashed: str, salt_bytes: int) -> SigningMechanism:
    parameter = PssParameter(hashed=hashed, salt_bytes=salt_bytes)
    return SigningMechanism(mechanism=f"{hashed}_RSA_PKCS_PSS", pss=parameter)


SIGNING_MECHANISMS: dict[str, SigningMechanism] = {
    "sha256WithRSAEncryption": SigningMechanism(mechanism="SHA256_RSA_PKCS"),
    "sha384WithRSAEncryption": SigningMechanism(mechanism="SHA384_RSA_PKCS"),
    "rsassa-pss-sha256": _pss("SHA256", 32),
    "rsassa-pss-sha384": _pss("SHA384", 48),
    "rsassa-pss-sha512": _pss("SHA512", 64),
    "ecdsa-with-SHA256": _ecdsa("sha256"),
    "ecdsa-with-SHA384": _ecdsa("sha384"),
    "ecdsa-with-SHA512": _ecdsa("sha512"),
    "ed25519": SigningMechanism(mechanism="EDDSA"),
}


def ecdsa_sig_value(signature: bytes) -> bytes:
    """Turn r‖s, as PKCS #11 gives it, into a DER Ecdsa-Sig-Value (RFC 3279 §2.2.3). About 1 µs.

    Raises nothing: what cannot be r‖s is returned as it is, and does not verify.
    """
    if len(signature) % 2 or len(signature) > _ECDSA_OCTETS:
        return signature
    half = len(signature) // 2
    body = _der_integer(signature[:half]) + _der_integer(signature[half:])
    length = len(body)
    return (b"\x30" + bytes((length,)) if length < 0x80 else b"\x30\x81" + bytes((length,))) + body  # noqa: PLR2004


def _der_integer(magnitude: bytes) -> bytes:
    number = int.from_bytes(magnitude, "big")
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")  # room for the sign bit, and for 0
    return bytes((2, len(content))) + content


def ed25519_spki(ec_point: bytes) -> bytes:
    """Make the SubjectPublicKeyInfo of CKA_EC_POINT, with or without its OCTET STRING head; raises ValueError."""
    point = ec_point.removeprefix(_OCTET_STRING_HEAD) if len(ec_point) > _ED25519_OCTETS else ec_point
    if len(point) != _ED25519_OCTETS:
        raise ValueError("no Ed25519 point")
    return _ED25519_SPKI_PREFIX + point
