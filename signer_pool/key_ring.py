"""Which key belongs to which label: the one that is expected, else the first one shown."""

import hashlib
from collections.abc import Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey, signature_algorithm
from pkix.errors import UnsupportedKey
from signer_pool.errors import KeyMismatch, UnknownKey
from signer_pool.lane import Lane


class KeyRing:
    """Public keys by label. One label never stands for two keys, whichever lanes come and go.

    `expected`: SHA-256 of the SubjectPublicKeyInfo that must stand behind a label, where it is known beforehand.
    """

    def __init__(self, expected: Mapping[str, bytes] | None = None) -> None:
        self._expected = dict(expected or {})
        self._keys: dict[str, SigningPublicKey] = {}
        self._algorithms: dict[str, SignatureAlgorithm] = {}

    def labels(self) -> frozenset[str]:
        """Return every label that a lane has shown."""
        return frozenset(self._keys)

    def public_key(self, label: str) -> SigningPublicKey:
        """Return the public half of a key; raises `UnknownKey`."""
        try:
            return self._keys[label]
        except KeyError:
            raise UnknownKey(f"no token has a key {label!r}") from None

    def algorithm(self, label: str) -> SignatureAlgorithm:
        """Return the algorithm that a key usually signs with; raises `UnknownKey`."""
        self.public_key(label)
        return self._algorithms[label]

    def pin(self, label: str, public_key: SigningPublicKey) -> None:
        """Make sure that the label stands for this key; raises `UnknownKey`, `KeyMismatch`.

        A ring never changes a key that it has shown, so what is checked once stays true.
        """
        self.public_key(label)
        spki_der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if self._expected[label] != hashlib.sha256(spki_der).digest():
            raise KeyMismatch(
                f"the tokens' key {label!r} is not the one that this CA was made with: connect the token that has "
                "it, or correct [[tokens]] and [keys]; `certmill token check` shows where it differs"
            )

    def made(self, label: str, spki_der: bytes) -> None:
        """Take in a key that was just made: whatever was expected under this label is no more."""
        self._expected.pop(label, None)
        self._learn(label, spki_der)

    def adopt(self, lane: Lane) -> frozenset[str]:
        """Take in all keys of a lane, or none; return the labels that it may sign with. Raises `KeyMismatch`."""
        for label, spki_der in lane.public_keys.items():
            expected = self._expected.get(label)
            if expected is not None and expected != hashlib.sha256(spki_der).digest():
                raise KeyMismatch(
                    f"key {label!r} is not the one that is expected: remove it from this token, or this token; "
                    "`certmill token check` shows which token is wrong"
                )
        return frozenset(label for label, spki in lane.public_keys.items() if self._learn(label, spki))

    def _learn(self, label: str, spki_der: bytes) -> bool:
        """Take in a key; False if it is of a kind that we do not sign with."""
        if label in self._keys:
            return True
        try:
            public_key = load_der_public_key(spki_der)
            self._algorithms[label] = signature_algorithm(public_key)
        except (ValueError, UnsupportedKey, UnsupportedAlgorithm):
            return False
        self._keys[label] = public_key  # type: ignore[assignment]  # signature_algorithm() has looked
        self._expected[label] = hashlib.sha256(spki_der).digest()
        return True
