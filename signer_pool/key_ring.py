"""Which key belongs to which label: the first one shown counts until, and unless, it is pinned."""

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from pkix.algorithms import SignatureAlgorithm, SigningPublicKey, signature_algorithm
from pkix.errors import UnsupportedKey
from signer_pool.errors import KeyMismatch, UnknownKey
from signer_pool.lane import Lane


class KeyRing:
    """Public keys by label. One label never stands for two keys, whichever lanes come and go."""

    def __init__(self) -> None:
        self._keys: dict[str, SigningPublicKey] = {}
        self._algorithms: dict[str, SignatureAlgorithm] = {}
        self._spki_der: dict[str, bytes] = {}

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
        if self._spki_der[label] != spki_der:
            raise KeyMismatch(f"the token's key {label!r} is not the one that was expected")

    def learn(self, label: str, spki_der: bytes) -> bool:
        """Take in a key that a lane shows; False if it is of a kind that we do not sign with.

        Raises `KeyMismatch` when the label stands for another key.
        """
        known = self._spki_der.get(label)
        if known is None:
            try:
                public_key = load_der_public_key(spki_der)
                self._algorithms[label] = signature_algorithm(public_key)
            except (ValueError, UnsupportedKey):
                return False
            self._keys[label] = public_key  # type: ignore[assignment]  # signature_algorithm() has looked
            self._spki_der[label] = spki_der
        elif known != spki_der:
            raise KeyMismatch(f"key {label!r} is another one here; remove it from this token, or this token")
        return True

    def adopt(self, lane: Lane) -> frozenset[str]:
        """Take in all keys of a lane and return the labels that it may sign with; raises `KeyMismatch`."""
        return frozenset(label for label, spki in lane.public_keys.items() if self.learn(label, spki))
