"""Stand-ins for what python-pkcs11 shows of a module: tokens, sessions, keys."""

from types import SimpleNamespace
from typing import Any

import msgspec
import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.attributes import AttributeMapper
from pkcs11.util.ec import encode_named_curve_parameters

from signer_pool.ckr import classify, code_of
from signer_pool.lane_config import KeyMatch, Pkcs11LaneConfig
from signer_pool.pkcs11_session import Pkcs11Session, open_pkcs11_session

CONFIG = Pkcs11LaneConfig(module_path="/m.so", token_label="token-1", pin="4711")
MECHANISMS = {Mechanism.SHA256_RSA_PKCS, Mechanism.ECDSA, Mechanism.EDDSA, Mechanism.SHA256_RSA_PKCS_PSS}


class FakeSession:
    """Stands for a session whose objects are the given ones."""

    def __init__(self, *objects: Any, error: Exception | None = None) -> None:
        self.objects = objects
        self.error = error
        self.closed = 0

    def get_objects(self, attributes: dict[Attribute, Any]) -> list[Any]:
        if self.error is not None:
            raise self.error
        wanted = attributes.get(Attribute.CLASS)
        kind = pkcs11.PublicKey if wanted is ObjectClass.PUBLIC_KEY else pkcs11.PrivateKey
        return [thing for thing in self.objects if isinstance(thing, kind) or thing is wanted]

    def close(self) -> None:
        self.closed += 1
        if self.error is not None:
            raise self.error


class FakeToken:
    """Stands for a token: `answers` are the errors of its logins, one after the other; then it opens."""

    label = "token-1"
    serial = b"0001"
    manufacturer_id = "Fakes"
    model = "Fake 2"
    hardware_version = (2, 6)
    firmware_version = (3, 10)

    def __init__(self, *answers: Exception, objects: tuple[Any, ...] = (), slot_id: int = 5) -> None:
        self.answers = list(answers)
        self.objects = objects
        self.flags = TokenFlag(0)
        self.slot = SimpleNamespace(
            slot_id=slot_id, get_mechanisms=lambda: MECHANISMS, get_token=lambda: self.later or self
        )
        self.later: FakeToken | None = None  # what the slot shows when it is asked again
        self.session_errors: list[Exception] = []
        self.is_write_protected = False
        self.opened: list[tuple[bool, str | None]] = []
        self.sessions: list[FakeSession] = []

    @property
    def logins(self) -> int:
        return sum(pin is not None for _, pin in self.opened)

    def open(
        self, *, rw: bool = False, user_pin: str | None = None, attribute_mapper: AttributeMapper
    ) -> FakeSession:
        self.mapper = attribute_mapper
        if rw and self.is_write_protected:
            raise pkcs11.TokenWriteProtected
        if self.session_errors:
            raise self.session_errors.pop(0)
        self.opened.append((rw, user_pin))
        if user_pin is not None and self.answers:
            raise self.answers.pop(0)
        self.sessions.append(FakeSession(*self.objects))
        return self.sessions[-1]


class FakeModule:
    """Stands for a module with these tokens."""

    def __init__(self, *tokens: FakeToken) -> None:
        self.tokens: tuple[FakeToken, ...] = tokens
        self.searches = 0
        self.errors: list[Exception] = []

    def get_tokens(self, *, token_label: str | None = None) -> list[FakeToken]:
        self.searches += 1
        if self.errors:
            raise self.errors.pop(0)
        return [token for token in self.tokens if token_label in {None, token.label}]


def use(monkeypatch: pytest.MonkeyPatch, *tokens: FakeToken) -> FakeModule:
    """Let the library find these tokens behind the path of `CONFIG`."""
    module = FakeModule(*tokens)

    def load(path: str) -> FakeModule:
        assert path == CONFIG.module_path
        return module

    monkeypatch.setattr(pkcs11, "lib", load)
    return module


def told(facts: dict[Attribute, Any], key: Attribute) -> Any:
    """Return an attribute, or raise what stands in its place."""
    if isinstance(facts[key], Exception):
        raise facts[key]
    return facts[key]


class FakePublic(pkcs11.PublicKey):
    """A public half with its attributes: on a curve, Ed25519, or DSA where `curve` is None."""

    def __init__(self, label: str, identity: bytes, curve: str | None = "secp256r1") -> None:
        self.facts: dict[Attribute, Any] = {Attribute.LABEL: label, Attribute.ID: identity}
        self.facts[Attribute.KEY_TYPE] = KeyType.EC if curve else KeyType.DSA
        if curve == "ed25519":
            self.facts[Attribute.KEY_TYPE] = KeyType.EC_EDWARDS
            point = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
            self.facts[Attribute.EC_POINT] = b"\x04\x20" + point
        elif curve:
            kind = ec.SECP256K1() if curve == "secp256k1" else ec.SECP256R1()
            numbers = ec.generate_private_key(kind).public_key().public_numbers()
            point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
            self.facts[Attribute.EC_PARAMS] = encode_named_curve_parameters(curve)
            self.facts[Attribute.EC_POINT] = b"\x04" + bytes((len(point),)) + point

    def __getitem__(self, key: Attribute) -> Any:
        return told(self.facts, key)


class FakePrivate(pkcs11.PrivateKey, pkcs11.types.SignMixin):
    """A private half that answers with a signature or an error, and remembers how it was asked."""

    def __init__(self, label: str, identity: bytes, answer: bytes | Exception = b"") -> None:
        self.facts: dict[Attribute, Any] = {Attribute.LABEL: label, Attribute.ID: identity}
        self._answer = answer
        self.asked: list[tuple[bytes, dict[str, Any]]] = []

    def __getitem__(self, key: Attribute) -> Any:
        return told(self.facts, key)

    def sign(self, data: bytes, **how: Any) -> bytes:  # type: ignore[override]
        self.asked.append((data, how))
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class FakeUnwrapper(pkcs11.PrivateKey):
    """A private key that cannot sign."""


def pair(name: str, identity: bytes, curve: str = "secp256r1") -> tuple[FakePublic, FakePrivate]:
    """Make both halves of a key."""
    return FakePublic(name, identity, curve), FakePrivate(name, identity)


def opened(monkeypatch: pytest.MonkeyPatch, token: FakeToken, config: Pkcs11LaneConfig = CONFIG) -> Pkcs11Session:
    """Open a session of this token."""
    use(monkeypatch, token)
    return open_pkcs11_session(config)


def with_objects(monkeypatch: pytest.MonkeyPatch, *objects: Any, **keys: KeyMatch) -> Pkcs11Session:
    """Open a session of a token with these objects, whose names are configured as `keys` says."""
    return opened(monkeypatch, FakeToken(objects=objects), msgspec.structs.replace(CONFIG, keys=keys))


def classified(error: pkcs11.PKCS11Error) -> str:
    """Name the return value behind an error of the library."""
    return classify(code_of(type(error).__name__, str(error))).name
