"""Keys in files behind the lane contract: for development, tests, and where there is no HSM."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pkix.algorithms import KeyAlgorithm, signature_algorithm
from pkix.errors import UnsupportedKey
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed
from signer_pool.lane import SoftwareLaneConfig

SigningPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_CURVES: dict[KeyAlgorithm, type[ec.EllipticCurve]] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1,
    KeyAlgorithm.EC_P384: ec.SECP384R1,
    KeyAlgorithm.EC_P521: ec.SECP521R1,
}
_RSA_BITS = {KeyAlgorithm.RSA_2048: 2048, KeyAlgorithm.RSA_3072: 3072, KeyAlgorithm.RSA_4096: 4096}


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

    def signer(self, label: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature; raises `SigningFailed`."""
        key = self._keys.get(label)
        if key is None:
            raise SigningFailed(f"{self.token}: no key {label!r}")
        algorithm = signature_algorithm(key.public_key()).hash_algorithm
        if isinstance(key, rsa.RSAPrivateKey):
            rsa_key, scheme = key, padding.PKCS1v15()
            return lambda tbs: rsa_key.sign(tbs, scheme, algorithm)
        ec_key, ecdsa = key, ec.ECDSA(algorithm)
        return lambda tbs: ec_key.sign(tbs, ecdsa)

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
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), self._config.passphrase.encode())
            signature_algorithm(key.public_key())
        except TypeError:
            raise LaneStartError(f"{path}: the key is not encrypted; encrypt it as PKCS #8") from None
        except (OSError, UnsupportedKey) as error:
            raise LaneStartError(f"{path}: cannot be used: {error}") from None
        except ValueError as error:
            if "password" in str(error):
                raise PinRejected(f"{path}: wrong passphrase; correct it and restart") from None
            raise LaneStartError(f"{path}: not a private key in encrypted PKCS #8 PEM") from None
        assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)  # noqa: S101 - for mypy
        return key


def _generate(algorithm: KeyAlgorithm) -> SigningPrivateKey:
    curve = _CURVES.get(algorithm)
    if curve is not None:
        return ec.generate_private_key(curve())
    return rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS[algorithm])


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
