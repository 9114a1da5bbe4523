"""One PKCS #11 session behind the lane contract; the only module that imports `pkcs11`.

Runs in a lane's child process, single-threaded: python-pkcs11 initialises the module without locks.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from pkix.algorithms import BY_KEY_ALGORITHM, KeyAlgorithm, key_algorithm
from pkix.errors import UnsupportedKey
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed
from signer_pool.lane import Pkcs11LaneConfig

_OPEN_DELAYS_S = (0.05, 0.1, 0.2, 0.4)
_ID_BYTES = 16
_PIN_ERRORS = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinLocked,
    pkcs11.PinExpired,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningMechanism:
    """How a kind of key signs.

    `digest`: the `hashlib` name of the hash that the token is given, None where it hashes the TBS itself.
    """

    mechanism: Mechanism
    digest: str | None


def _rsa(mechanism: Mechanism) -> SigningMechanism:
    return SigningMechanism(mechanism=mechanism, digest=None)


def _ecdsa(algorithm: KeyAlgorithm) -> SigningMechanism:
    # CKM_ECDSA over a digest: every token has it; the combined CKM_ECDSA_SHA… many (SoftHSM 2.6) have not.
    return SigningMechanism(mechanism=Mechanism.ECDSA, digest=BY_KEY_ALGORITHM[algorithm].hash_name)


SIGNING_MECHANISMS: dict[KeyAlgorithm, SigningMechanism] = {
    KeyAlgorithm.RSA_2048: _rsa(Mechanism.SHA256_RSA_PKCS),
    KeyAlgorithm.RSA_3072: _rsa(Mechanism.SHA256_RSA_PKCS),
    KeyAlgorithm.RSA_4096: _rsa(Mechanism.SHA384_RSA_PKCS),
    KeyAlgorithm.EC_P256: _ecdsa(KeyAlgorithm.EC_P256),
    KeyAlgorithm.EC_P384: _ecdsa(KeyAlgorithm.EC_P384),
    KeyAlgorithm.EC_P521: _ecdsa(KeyAlgorithm.EC_P521),
}

_CURVES = {
    KeyAlgorithm.EC_P256: "secp256r1",
    KeyAlgorithm.EC_P384: "secp384r1",
    KeyAlgorithm.EC_P521: "secp521r1",
}
_RSA_BITS = {KeyAlgorithm.RSA_2048: 2048, KeyAlgorithm.RSA_3072: 3072, KeyAlgorithm.RSA_4096: 4096}
_SIGNATURE_BUFFER_BYTES = 1024  # RSA-4096 needs 512; python-pkcs11 would zero 8 KiB for each signature


def ecdsa_sig_value(signature: bytes) -> bytes:
    """Turn r‖s, as PKCS #11 gives it, into a DER Ecdsa-Sig-Value (RFC 3279 §2.2.3). About 1 µs."""
    half = len(signature) // 2
    body = _der_integer(signature[:half]) + _der_integer(signature[half:])
    length = len(body)
    return (b"\x30" + bytes((length,)) if length < 0x80 else b"\x30\x81" + bytes((length,))) + body  # noqa: PLR2004


def _der_integer(magnitude: bytes) -> bytes:
    number = int.from_bytes(magnitude, "big")
    content = number.to_bytes(number.bit_length() // 8 + 1, "big")  # room for the sign bit, and for 0
    return bytes((2, len(content))) + content


def open_pkcs11_session(
    config: Pkcs11LaneConfig, *, sleep: Callable[[float], None] = time.sleep
) -> "Pkcs11Session":
    """Load the module, find the token, log in; raises `LaneStartError`, `PinRejected`.

    Processes that open a token at the same instant may see CKR_GENERAL_ERROR: that alone is tried again.
    """
    for delay_s in _OPEN_DELAYS_S:
        try:
            return _open(config)
        except pkcs11.GeneralError:
            sleep(delay_s)
    try:
        return _open(config)
    except pkcs11.GeneralError:
        raise LaneStartError(
            f"{config.token}: the module answers CKR_GENERAL_ERROR; check its own configuration and log"
        ) from None


def _open(config: Pkcs11LaneConfig) -> "Pkcs11Session":
    try:
        token = pkcs11.lib(config.module_path).get_token(token_label=config.token_label)
        return Pkcs11Session(config, token.open(rw=True, user_pin=config.pin))
    except pkcs11.GeneralError:
        raise
    except _PIN_ERRORS as error:
        raise PinRejected(
            f"{config.token}: the PIN was refused ({type(error).__name__}); it is not tried again, so that "
            "the token does not lock: correct the PIN and restart"
        ) from None
    except pkcs11.NoSuchToken:
        raise LaneStartError(f"{config.token}: no such token; initialise it or correct the label") from None
    except pkcs11.MultipleTokensReturned:
        raise LaneStartError(f"{config.token}: several tokens of this label; rename all but one") from None
    except pkcs11.PKCS11Error as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LaneStartError(
            f"{config.token}: cannot be opened ({reason}); check that the module's path is right and that "
            "its device is connected"
        ) from None


@dataclass(frozen=True, slots=True)
class _Key:
    handle: SignMixin
    algorithm: KeyAlgorithm
    spki_der: bytes


class Pkcs11Session:
    """A `KeySession` over one logged-in session."""

    def __init__(self, config: Pkcs11LaneConfig, session: pkcs11.Session) -> None:
        self._config = config
        self._session = session
        self._keys: dict[str, _Key] = {}

    @property
    def token(self) -> str:
        """Describe the token."""
        token = self._session.token
        serial = token.serial.decode("ascii", "replace")
        return f"{self._config.token} ({token.manufacturer_id} {token.model}, serial {serial})"

    def public_keys(self) -> dict[str, bytes]:
        """Find the key pairs that we can sign with; raises `LaneStartError`.

        A private key counts when its label is unique and its public half is on the token.
        """
        try:
            self._keys = self._find_keys()
        except pkcs11.PKCS11Error as error:
            raise LaneStartError(
                f"{self._config.token}: its keys cannot be listed ({type(error).__name__}); check the token"
            ) from None
        return {label: key.spki_der for label, key in self._keys.items()}

    def signer(self, label: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature; raises `SigningFailed`."""
        key = self._keys.get(label)
        if key is None:
            raise SigningFailed(f"{self._config.token}: no key {label!r}")
        row = SIGNING_MECHANISMS[key.algorithm]
        sign, mechanism, digest = key.handle.sign, row.mechanism, row.digest

        def sign_hashed_by_token(tbs: bytes) -> bytes:
            try:
                return sign(tbs, mechanism=mechanism, buffer_size=_SIGNATURE_BUFFER_BYTES)
            except pkcs11.PKCS11Error as error:
                raise SigningFailed(type(error).__name__) from error

        def sign_digest(tbs: bytes) -> bytes:
            try:
                raw = sign(hash_function(tbs).digest(), mechanism=mechanism, buffer_size=_SIGNATURE_BUFFER_BYTES)
            except pkcs11.PKCS11Error as error:
                raise SigningFailed(type(error).__name__) from error
            return ecdsa_sig_value(raw)

        if digest is None:
            return sign_hashed_by_token
        hash_function: Callable[[bytes], hashlib._Hash] = getattr(hashlib, digest)
        return sign_digest

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key pair that is sensitive and not extractable; raises `KeyExists`, `SigningFailed`."""
        try:
            if any(self._session.get_objects({Attribute.LABEL: label})):
                raise KeyExists(f"{self._config.token}: an object {label!r} exists already")
            public, private = self._generate(label, algorithm)
            spki_der = _spki_der(public)
            self._keys[label] = _Key(cast("SignMixin", private), algorithm, spki_der)
        except pkcs11.PKCS11Error as error:
            raise SigningFailed(f"{self._config.token}: key generation: {type(error).__name__}") from error
        return spki_der

    def _generate(self, label: str, algorithm: KeyAlgorithm) -> tuple[pkcs11.PublicKey, pkcs11.PrivateKey]:
        template = {
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: False,
            Attribute.PRIVATE: True,
        }
        common = {
            "id": secrets.token_bytes(_ID_BYTES),
            "label": label,
            "store": True,
            "capabilities": MechanismFlag.SIGN | MechanismFlag.VERIFY,
            "private_template": template,
        }
        curve = _CURVES.get(algorithm)
        if curve is None:
            return self._session.generate_keypair(KeyType.RSA, _RSA_BITS[algorithm], **common)
        parameters = self._session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
        )
        return parameters.generate_keypair(**common)  # type: ignore[arg-type]  # of a dict of many types

    def _find_keys(self) -> dict[str, _Key]:
        by_id: dict[bytes, bytes] = {}
        by_label: dict[str, bytes] = {}
        for public in self._session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}):
            if not isinstance(public, pkcs11.PublicKey) or public.key_type not in {KeyType.RSA, KeyType.EC}:
                continue
            with suppress(ValueError):  # damaged, or another program is just writing it
                by_id[public.id] = by_label[public.label] = _spki_der(public)
        found: dict[str, _Key] = {}
        ambiguous: set[str] = set()
        for private in self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
            if not isinstance(private, pkcs11.PrivateKey) or not isinstance(private, SignMixin):
                continue
            # CKA_ID is what pairs the halves (PKCS #11 §4.8); tokens filled by hand may lack it.
            spki_der = by_id.get(private.id) if private.id else by_label.get(private.label)
            algorithm = _algorithm(spki_der)
            if spki_der is None or algorithm is None:
                continue
            if private.label in found:
                ambiguous.add(private.label)
            found[private.label] = _Key(private, algorithm, spki_der)
        return {label: key for label, key in found.items() if label not in ambiguous}


def _algorithm(spki_der: bytes | None) -> KeyAlgorithm | None:
    try:
        return None if spki_der is None else key_algorithm(serialization.load_der_public_key(spki_der))
    except (UnsupportedKey, ValueError):
        return None  # a key of a kind that we do not sign with is none of our business


def _spki_der(public: pkcs11.PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA or EC key; raises ValueError if parts of it are missing."""
    if public.key_type is KeyType.EC:
        return encode_ec_public_key(public)
    numbers = rsa.RSAPublicNumbers(
        int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big"),
        int.from_bytes(public[Attribute.MODULUS], "big"),
    )
    return numbers.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
