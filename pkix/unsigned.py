"""Exact to-be-signed bytes, and the signed structure put together around them.

The builders of `cryptography` want a private key. The keys here only *record* what they are asked to sign,
which is the exact TBS; the real signature is made elsewhere (in an HSM) and joined to the TBS by `assemble`.
No byte is ever edited: what was recorded is what is linted, what is signed and what is released.
"""

from typing import NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.utils import Buffer
from cryptography.x509.ocsp import OCSPResponseBuilder

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey
from pkix.names import TbsDer

_LONG_FORM = 0x80
_PLACEHOLDER = b"\x30\x06\x02\x01\x01\x02\x01\x01"


Builder = x509.CertificateBuilder | x509.CertificateRevocationListBuilder | OCSPResponseBuilder


class _Recorder:
    """What all recording keys share: they hold a public key, record once and refuse everything else."""

    recorded: bytes = b""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a recording key only records what it is asked to sign")

    exchange = decrypt = private_numbers = private_bytes = private_bytes_raw = _refuse

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self


class _RecordingRsaKey(_Recorder, rsa.RSAPrivateKey):
    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        self._public_key = public_key

    def sign(self, data: Buffer, padding: object, algorithm: object) -> bytes:
        self.recorded = bytes(data)
        return _PLACEHOLDER

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_size(self) -> int:
        return self._public_key.key_size


class _RecordingEcKey(_Recorder, ec.EllipticCurvePrivateKey):
    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        self._public_key = public_key

    def sign(self, data: Buffer, signature_algorithm: object) -> bytes:
        self.recorded = bytes(data)
        return _PLACEHOLDER

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size


class _RecordingEd25519Key(_Recorder, ed25519.Ed25519PrivateKey):
    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        self._public_key = public_key

    def sign(self, data: Buffer) -> bytes:
        self.recorded = bytes(data)
        return _PLACEHOLDER

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key


_RecordingKey = _RecordingRsaKey | _RecordingEcKey | _RecordingEd25519Key


def capture_tbs(builder: Builder, public_key: SigningPublicKey, algorithm: SignatureAlgorithm) -> TbsDer:
    """Return the bytes that the holder of `public_key` has to sign with `algorithm`, one of that key's own.

    Cost: 40-55 µs.
    """
    key = _recording_key(public_key)
    if isinstance(builder, OCSPResponseBuilder):
        # It takes no padding, and ResponseData names no algorithm (RFC 6960 §4.2.1): its bytes are the same.
        builder.sign(key, algorithm.hash_algorithm)
    else:
        builder.sign(key, algorithm.hash_algorithm, rsa_padding=algorithm.rsa_padding)
    return TbsDer(key.recorded)


def _recording_key(public_key: SigningPublicKey) -> _RecordingKey:
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return _RecordingEcKey(public_key)
    if isinstance(public_key, rsa.RSAPublicKey):
        return _RecordingRsaKey(public_key)
    return _RecordingEd25519Key(public_key)


def tlv(tag: int, content: bytes) -> bytes:
    """Encode one DER element with a low tag number and definite length (X.690 §8.1)."""
    length = len(content)
    if length < _LONG_FORM:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, _LONG_FORM | len(octets))) + octets + content


def assemble(tbs: TbsDer, algorithm: SignatureAlgorithm, signature: bytes) -> bytes:
    """Join TBS, AlgorithmIdentifier and signature: a Certificate or CertificateList (RFC 5280 §4.1, §5.1)."""
    return tlv(0x30, tbs + algorithm.identifier_der + tlv(0x03, b"\x00" + signature))
