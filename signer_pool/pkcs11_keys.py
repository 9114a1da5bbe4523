"""Finding the key pairs of a token that we can sign with, among whatever else is on it."""

from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pkcs11
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.types import SignMixin
from pkcs11.util.ec import encode_ec_public_key

from pkix.algorithms import BY_KEY_ALGORITHM, KeyAlgorithm, key_algorithm
from pkix.errors import UnsupportedKey
from signer_pool.lane_config import KeyMatch, Pkcs11LaneConfig
from signer_pool.mechanisms import SIGNING_MECHANISMS, ed25519_spki

# Where reading attributes fails, python-pkcs11 returns less than a key is; were that skipped, keys would vanish.
_UNREADABLE = "an object's attributes cannot be read"
_KEY_TYPES = {KeyType.RSA, KeyType.EC, KeyType.EC_EDWARDS}
# These speak of the object that was asked, whatever else is wrong; the other objects are well.
_OF_ONE_OBJECT = (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive)


@dataclass(frozen=True, slots=True)
class PublicHalf:
    """Of which kind a key is, and its SubjectPublicKeyInfo."""

    algorithm: KeyAlgorithm
    spki_der: bytes


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key pair: the private half's handle, and what is known of the public one."""

    handle: SignMixin
    public: PublicHalf


class KeySearch:
    """One search in one session. Afterwards: `notes`, lines for the operator about keys that cannot be used.

    `names`: all private keys that were found, usable or not; `hides_private_keys`: there are public keys, and not
    one private key, as in a session that is not logged in.
    """

    def __init__(
        self, session: pkcs11.Session, config: Pkcs11LaneConfig, mechanisms: Container[Mechanism]
    ) -> None:
        self.notes: list[str] = []
        self.names: frozenset[str] = frozenset()
        self.hides_private_keys = False
        self._session = session
        self._config = config
        self._mechanisms = mechanisms

    def run(self) -> dict[str, TokenKey]:
        """Return the key pairs that we can sign with, by the pool's name; raises PKCS11Error of the session.

        A private key counts when it is the only one of its name and its public half is on the token.
        """
        by_id, by_label = self._find_public_halves()
        found: dict[str, TokenKey] = {}
        ambiguous: set[str] = set()
        private_seen = False
        for private in self._session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}):
            if not isinstance(private, pkcs11.PrivateKey):
                raise pkcs11.FunctionFailed(_UNREADABLE)
            private_seen = True
            if not isinstance(private, SignMixin):
                continue
            with self._sparing_the_others(private):
                # CKA_ID is what pairs the halves (PKCS #11 §4.8); tokens filled by hand may lack it.
                public = by_id.get(private.id) if private.id else by_label.get(private.label)
                name = _name(private, self._config.keys) if public is not None else None
                if public is None or name is None or not self._can_sign(name, public.algorithm):
                    continue
                if name in found:
                    ambiguous.add(name)
                found[name] = TokenKey(private, public)
        self.hides_private_keys = bool(by_label) and not private_seen
        self.names = frozenset(found)
        self.notes += [
            f"{self._config.token}: several private keys are called {name!r}; none of them is used: rename all "
            "but one, or add id=… to the key's URI"
            for name in sorted(ambiguous)
        ]
        return {name: key for name, key in found.items() if name not in ambiguous}

    def _find_public_halves(self) -> tuple[dict[bytes, PublicHalf], dict[str, PublicHalf]]:
        """Find the public keys of kinds that we sign with, by CKA_ID and by label."""
        by_id: dict[bytes, PublicHalf] = {}
        by_label: dict[str, PublicHalf] = {}
        for public in self._session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}):
            if not isinstance(public, pkcs11.PublicKey):
                raise pkcs11.FunctionFailed(_UNREADABLE)
            with self._sparing_the_others(public):
                half = _public_half(public)
                if half is not None:
                    identity, label = public.id, public.label
                    by_id[identity] = by_label[label] = half
        return by_id, by_label

    @contextmanager
    def _sparing_the_others(self, key: pkcs11.PublicKey | pkcs11.PrivateKey) -> Iterator[None]:
        """Pass over a key that cannot be read, with a note: it is not ours, damaged, or just being written.

        What speaks of the session instead is raised: else keys would vanish.
        """
        try:
            yield
        except _OF_ONE_OBJECT as error:
            self._pass_over(key, error)
        except pkcs11.PKCS11Error:
            raise
        except Exception as error:
            self._pass_over(key, error)

    def _pass_over(self, key: pkcs11.PublicKey | pkcs11.PrivateKey, error: Exception) -> None:
        kind = "private" if isinstance(key, pkcs11.PrivateKey) else "public"
        self.notes.append(
            f"{self._config.token}: the {kind} key {_called(key)} cannot be read ({type(error).__name__}) and is "
            "left alone; if it is one of the CA's, look at its attributes with the vendor's tool"
        )

    def _can_sign(self, name: str, algorithm: KeyAlgorithm) -> bool:
        mechanism = SIGNING_MECHANISMS[BY_KEY_ALGORITHM[algorithm].name].mechanism
        if Mechanism[mechanism] in self._mechanisms:
            return True
        self.notes.append(
            f"{self._config.token}: lacks the mechanism CKM_{mechanism} that the {algorithm.value} key "
            f"{name!r} needs; enable it on the token, or use a key of another kind"
        )
        return False


def _name(private: pkcs11.PrivateKey, keys: dict[str, KeyMatch]) -> str | None:
    """Return the pool's name of a key: the configured one that matches, else its label unless that is taken."""
    for name, match in keys.items():
        if match.label in {None, private.label} and match.id in {None, private.id}:
            return name
    return None if private.label in keys else private.label


def _public_half(public: pkcs11.PublicKey) -> PublicHalf | None:
    """Read a public key; None if it is of a kind that we do not sign with. Its attributes may raise anything."""
    if public.key_type not in _KEY_TYPES:
        return None
    spki_der = spki_der_of(public)
    try:
        return PublicHalf(key_algorithm(serialization.load_der_public_key(spki_der)), spki_der)
    except UnsupportedKey:
        return None


def _called(key: pkcs11.PublicKey | pkcs11.PrivateKey) -> str:
    """Name a key by what of its names can be read."""
    with suppress(Exception):
        return repr(key.label)
    with suppress(Exception):
        return f"of id {key.id.hex()}"
    return "without label and id"


def spki_der_of(public: pkcs11.PublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo of an RSA or EC key; raises ValueError if parts of it are missing."""
    if public.key_type is KeyType.EC:
        return encode_ec_public_key(public)
    if public.key_type is KeyType.EC_EDWARDS:
        return ed25519_spki(public[Attribute.EC_POINT])
    numbers = rsa.RSAPublicNumbers(
        int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big"),
        int.from_bytes(public[Attribute.MODULUS], "big"),
    )
    return numbers.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
