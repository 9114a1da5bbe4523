"""Both kinds of sessions and the mechanism table, in this process."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from pkix.algorithms import KeyAlgorithm, verify_signature
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed
from signer_pool.lane import Pkcs11LaneConfig, SoftwareLaneConfig
from signer_pool.lane_process import open_session
from signer_pool.pkcs11_session import SIGNING_MECHANISMS, Pkcs11Session, ecdsa_sig_value, open_pkcs11_session
from signer_pool.software import SoftwareSession
from tests.unit.signer_pool.lanes import PASSPHRASE, p256_config, software_config

CONFIG = Pkcs11LaneConfig(module_path="/m.so", token_label="token-1", pin="4711")


@pytest.mark.parametrize(
    ("algorithm", "mechanism", "digest"),
    [
        (KeyAlgorithm.RSA_2048, Mechanism.SHA256_RSA_PKCS, None),
        (KeyAlgorithm.RSA_3072, Mechanism.SHA256_RSA_PKCS, None),
        (KeyAlgorithm.RSA_4096, Mechanism.SHA384_RSA_PKCS, None),
        (KeyAlgorithm.EC_P256, Mechanism.ECDSA, "sha256"),
        (KeyAlgorithm.EC_P384, Mechanism.ECDSA, "sha384"),
        (KeyAlgorithm.EC_P521, Mechanism.ECDSA, "sha512"),
    ],
)
def test_mechanism_of_each_kind_of_key(algorithm: KeyAlgorithm, mechanism: Mechanism, digest: str | None) -> None:
    assert dataclasses.astuple(SIGNING_MECHANISMS[algorithm]) == (mechanism, digest)


def test_no_kind_of_key_is_without_mechanism() -> None:
    assert set(SIGNING_MECHANISMS) == set(KeyAlgorithm)


@pytest.mark.parametrize("size", [32, 48, 66])
def test_ecdsa_signatures_are_der(size: int) -> None:
    chance = random.Random(size)
    numbers = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 256**size - 1, 256**size // 2]
    numbers += [chance.getrandbits(chance.randrange(size * 8)) for _ in range(200)]
    for r, s in zip(numbers, reversed(numbers), strict=True):
        raw = r.to_bytes(size, "big") + s.to_bytes(size, "big")
        assert ecdsa_sig_value(raw) == encode_dss_signature(r, s)


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_software_keys_of_every_kind(tmp_path: Path, algorithm: KeyAlgorithm) -> None:
    config = software_config(tmp_path, ("key", algorithm))
    session = open_session(config)
    public_key: Any = serialization.load_der_public_key(session.public_keys()["key"])
    verify_signature(public_key, b"tbs", session.signer("key")(b"tbs"))
    assert session.token == f"software keys in {tmp_path}"


def test_software_key_files_are_encrypted_and_private(tmp_path: Path) -> None:
    p256_config(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.name == "ec.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")


def test_software_refuses_to_replace_a_key(tmp_path: Path) -> None:
    config = p256_config(tmp_path)
    before = (tmp_path / "ec.pem").read_bytes()
    with pytest.raises(KeyExists):
        SoftwareSession(config).generate("ec", KeyAlgorithm.EC_P256)
    assert (tmp_path / "ec.pem").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_software_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(SigningFailed):
        SoftwareSession(p256_config(tmp_path)).signer("ec")


def _pem(key: Any, passphrase: bytes | None = PASSPHRASE.encode()) -> bytes:
    cipher = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cipher))


@pytest.mark.parametrize(
    ("pem", "error", "message"),
    [
        (b"nonsense", LaneStartError, "not a private key"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), None), LaneStartError, "not encrypted"),
        (_pem(ec.generate_private_key(ec.SECP256R1()), b"other"), PinRejected, "wrong passphrase"),
        (_pem(ed25519.Ed25519PrivateKey.generate()), LaneStartError, "cannot be used"),
    ],
)
def test_software_key_that_cannot_be_used(
    tmp_path: Path, pem: bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / "bad.pem").write_bytes(pem)
    session = SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path), passphrase=PASSPHRASE))
    with pytest.raises(error, match=message) as caught:
        session.public_keys()
    assert "bad.pem" in str(caught.value)


def test_software_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(LaneStartError, match="no such directory"):
        SoftwareSession(SoftwareLaneConfig(directory=str(tmp_path / "x"), passphrase="p")).public_keys()


class FakeModule:
    """Stands for a module: answers with the given errors, one for each login, then opens."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.logins = 0

    def get_token(self, *, token_label: str) -> "FakeModule":
        assert token_label == CONFIG.token_label
        return self

    def open(self, *, rw: bool, user_pin: str) -> "FakeSession":
        assert rw
        assert user_pin == CONFIG.pin
        self.logins += 1
        if self.answers:
            raise self.answers.pop(0)
        return FakeSession()


class FakeSession:
    """Stands for a session whose objects are the given ones."""

    def __init__(self, *objects: Any, error: Exception | None = None) -> None:
        self._objects = objects
        self._error = error

    def get_objects(self, attributes: dict[Attribute, Any]) -> list[Any]:
        if self._error is not None:
            raise self._error
        wanted = attributes.get(Attribute.CLASS)
        kind = pkcs11.PublicKey if wanted is ObjectClass.PUBLIC_KEY else pkcs11.PrivateKey
        return [thing for thing in self._objects if isinstance(thing, kind) or thing is None]


def use(monkeypatch: pytest.MonkeyPatch, module: FakeModule) -> list[float]:
    def load(path: str) -> FakeModule:
        assert path == CONFIG.module_path
        return module

    monkeypatch.setattr(pkcs11, "lib", load)
    return []


def test_general_error_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule(pkcs11.GeneralError(), pkcs11.GeneralError())
    slept = use(monkeypatch, module)
    assert open_pkcs11_session(CONFIG, sleep=slept.append).public_keys() == {}
    assert module.logins == 3
    assert slept == [0.05, 0.1]


def test_lasting_general_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeModule(*[pkcs11.GeneralError()] * 9)
    slept = use(monkeypatch, module)
    with pytest.raises(LaneStartError, match=r"token-1.*/m\.so.*GENERAL_ERROR"):
        open_pkcs11_session(CONFIG, sleep=slept.append)
    assert module.logins == 5


@pytest.mark.parametrize(
    "error", [pkcs11.PinIncorrect, pkcs11.PinLocked, pkcs11.PinExpired, pkcs11.PinInvalid, pkcs11.PinLenRange]
)
def test_refused_pin_is_one_login(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    module = FakeModule(error())
    slept = use(monkeypatch, module)
    with pytest.raises(PinRejected, match=error.__name__) as caught:
        open_pkcs11_session(CONFIG, sleep=slept.append)
    assert module.logins == 1
    assert slept == []
    assert CONFIG.pin not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (pkcs11.NoSuchToken(), "no such token"),
        (pkcs11.MultipleTokensReturned(), "several tokens"),
        (pkcs11.DeviceRemoved(), "DeviceRemoved"),
        (pkcs11.PKCS11Error("cannot\nload"), "cannot load"),
    ],
)
def test_start_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    use(monkeypatch, FakeModule(error))
    with pytest.raises(LaneStartError, match=message) as caught:
        open_pkcs11_session(CONFIG)
    assert "token-1" in str(caught.value)
    assert "/m.so" in str(caught.value)
    assert "\n" not in str(caught.value)


def session_of(*objects: Any, error: Exception | None = None) -> Pkcs11Session:
    return Pkcs11Session(CONFIG, FakeSession(*objects, error=error))  # type: ignore[arg-type]  # a stand-in


class FakePublic(pkcs11.PublicKey):
    """A public half with its attributes."""

    def __init__(self, label: str, identity: bytes, curve: str | None = "secp256r1") -> None:
        self._facts: dict[Attribute, Any] = {Attribute.LABEL: label, Attribute.ID: identity}
        self._facts[Attribute.KEY_TYPE] = KeyType.EC if curve else KeyType.DSA
        if curve:
            point = b"\x04" + b"\x11" * 64
            if curve != "secp256k1":
                numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
                point = b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
            self._facts[Attribute.EC_PARAMS] = encode_named_curve_parameters(curve)
            self._facts[Attribute.EC_POINT] = b"\x04" + bytes((len(point),)) + point

    def __getitem__(self, key: Attribute) -> Any:
        return self._facts[key]


class FakePrivate(pkcs11.PrivateKey, pkcs11.types.SignMixin):
    """A private half that answers with an error."""

    def __init__(self, label: str, identity: bytes, error: Exception | None = None) -> None:
        self._facts = {Attribute.LABEL: label, Attribute.ID: identity}
        self._error = error

    def __getitem__(self, key: Attribute) -> Any:
        return self._facts[key]

    def sign(self, *_: Any, **__: Any) -> bytes:
        raise self._error or AssertionError("not to be called")


class FakeUnwrapper(pkcs11.PrivateKey):
    """A private key that cannot sign."""


def test_only_pairs_that_can_sign_are_listed() -> None:
    session = session_of(
        None,
        FakePublic("good", b"1"),
        FakePrivate("good", b"1"),
        FakePrivate("without public half", b"2"),
        FakePublic("odd curve", b"3", "secp256k1"),
        FakePrivate("odd curve", b"3"),
        FakePublic("dsa", b"4", None),
        FakePrivate("dsa", b"4"),
        FakePublic("by label", b""),
        FakePrivate("by label", b""),
        FakePublic("twice", b"5"),
        FakePrivate("twice", b"5"),
        FakePrivate("twice", b"5"),
        FakeUnwrapper.__new__(FakeUnwrapper),
    )
    assert set(session.public_keys()) == {"good", "by label"}


def test_key_that_is_half_written_is_passed_over() -> None:
    halves = FakePublic("rsa", b"1"), FakePublic("ec", b"2")
    halves[0]._facts |= {Attribute.KEY_TYPE: KeyType.RSA, Attribute.PUBLIC_EXPONENT: b"", Attribute.MODULUS: b""}
    halves[1]._facts |= {Attribute.EC_POINT: b""}
    privates = FakePrivate("rsa", b"1"), FakePrivate("ec", b"2")
    session = session_of(*halves, *privates, FakePublic("good", b"3"), FakePrivate("good", b"3"))
    assert set(session.public_keys()) == {"good"}


def test_token_errors_while_signing_are_told_by_name() -> None:
    session = session_of(FakePublic("key", b"1"), FakePrivate("key", b"1", pkcs11.DeviceError()))
    session.public_keys()
    with pytest.raises(SigningFailed, match="DeviceError"):
        session.signer("key")(b"tbs")
    with pytest.raises(SigningFailed, match="no key 'other'"):
        session.signer("other")
    key = session._keys["key"]
    session._keys["key"] = dataclasses.replace(key, algorithm=KeyAlgorithm.RSA_2048)
    with pytest.raises(SigningFailed, match="DeviceError"):
        session.signer("key")(b"tbs")


def test_token_errors_outside_signing() -> None:
    session = session_of(error=pkcs11.SessionHandleInvalid())
    with pytest.raises(LaneStartError, match="SessionHandleInvalid"):
        session.public_keys()
    with pytest.raises(SigningFailed, match="SessionHandleInvalid"):
        session.generate("key", KeyAlgorithm.EC_P256)
