"""Keys in files behind the lane contract: for development, tests, and where there is no HSM."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pkix.algorithms import SIGNATURE_ALGORITHMS, KeyAlgorithm, signature_algorithm
from pkix.errors import UnsupportedKey
from signer_pool import ckr
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, TokenRefused
from signer_pool.lane import TokenFacts
from signer_pool.lane_config import SoftwareLaneConfig
from signer_pool.mechanisms import RSA_BITS

SigningPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_CURVES: dict[KeyAlgorithm, type[ec.EllipticCurve]] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1,
    KeyAlgorithm.EC_P384: ec.SECP384R1,
    KeyAlgorithm.EC_P521: ec.SECP521R1,
}


class SoftwareSession:
    """A `KeySession` over the encrypted PKCS #8 files `<label>.pem` of one directory."""

    def __init__(self, config: SoftwareLaneConfig) -> None:
        self._config = config
        self._directory = Path(config.directory)
        self._keys: dict[str, SigningPrivateKey] = {}

    @property
    def token(self) -> str:
        """Describe the directory."""
        return self._config.token

    def public_keys(self) -> dict[str, bytes]:
        """Read the files that are new; raises `LaneStartError`, `PinRejected`."""
        if not self._directory.is_dir():
            raise LaneStartError(f"{self.token}: no such directory; create it or correct the setting")
        for path in sorted(self._directory.glob("*.pem")):
            if path.stem not in self._keys:
                self._keys[path.stem] = self._load(path)
        return {label: _spki_der(key) for label, key in self._keys.items()}

    def facts(self) -> TokenFacts:
        """Return what there is to say of a directory."""
        return TokenFacts(label=self._config.name, manufacturer="certmill", model="software keys")

    def notes(self) -> list[str]:
        """Return nothing: a file that cannot be used is an error at once."""
        return []

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature; raises `TokenRefused`."""
        key = self._keys.get(name)
        if key is None:
            raise TokenRefused(f"{self.token}: no key {name!r}", ckr.classify(ckr.KEY_HANDLE_INVALID))
        sign, scheme = key.sign, SIGNATURE_ALGORITHMS[algorithm].scheme
        return lambda tbs: sign(tbs, *scheme)

    def reopen(self) -> None:
        """Read the files again."""
        self._keys.clear()
        self.public_keys()

    def touch(self) -> None:
        """Do nothing: a directory never closes a session."""

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key and its file (mode 0600), durable before it is used; raises `KeyExists`."""
        key = _generate(algorithm)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(self._config.passphrase.encode()),
        )
        path = self._directory / f"{label}.pem"
        # Written aside and linked into place: another lane that lists now sees all of the file or nothing,
        # and link(), unlike rename(), refuses to replace a key.
        temporary = path.with_name(f".{label}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temporary)
        except FileExistsError:
            raise KeyExists(f"{self.token}: key {label!r} exists already") from None
        finally:
            temporary.unlink()
        _fsync_directory(self._directory)
        self._keys[label] = key
        return _spki_der(key)

    def _load(self, path: Path) -> SigningPrivateKey:
        pem = b""
        try:
            pem = path.read_bytes()
            key = serialization.load_pem_private_key(pem, self._config.passphrase.encode())
            signature_algorithm(key.public_key())
        except TypeError:
            raise LaneStartError(f"{path}: the key is not encrypted; encrypt it as PKCS #8") from None
        except (OSError, UnsupportedAlgorithm, UnsupportedKey) as error:
            raise LaneStartError(f"{path}: cannot be used: {error}") from None
        except ValueError:
            # A wrong passphrase shows in the padding, but one in 256 gives garbage instead, as damage does.
            if _ENCRYPTED in pem:
                raise PinRejected(f"{path}: wrong passphrase, or damaged; correct it and restart") from None
            raise LaneStartError(f"{path}: not a private key in encrypted PKCS #8 PEM") from None
        assert isinstance(key, SigningPrivateKey)  # noqa: S101 - for mypy
        return key


def _generate(algorithm: KeyAlgorithm) -> SigningPrivateKey:
    if algorithm is KeyAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    curve = _CURVES.get(algorithm)
    if curve is not None:
        return ec.generate_private_key(curve())
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS[algorithm])


def _spki_der(key: SigningPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
