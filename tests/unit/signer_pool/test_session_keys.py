"""Finding keys in a session: pairs that can sign, and objects of others that cannot be read."""

import struct
from typing import Any

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from signer_pool.errors import LaneStartError
from signer_pool.lane_config import KeyMatch
from tests.unit.signer_pool.fake_tokens import (
    MECHANISMS,
    FakePrivate,
    FakePublic,
    FakeToken,
    FakeUnwrapper,
    classified,
    opened,
    pair,
    with_objects,
)


def test_only_pairs_that_can_sign_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_objects(
        monkeypatch,
        *pair("good", b"1"),
        *pair("edwards", b"6", "ed25519"),
        FakePrivate("without public half", b"2"),
        *pair("odd curve", b"3", "secp256k1"),
        FakePublic("dsa", b"4", None),
        FakePrivate("dsa", b"4"),
        *pair("by label", b""),
        FakePublic("twice", b"5"),
        FakePrivate("twice", b"5"),
        FakePrivate("twice", b"5"),
        FakeUnwrapper.__new__(FakeUnwrapper),
    )
    assert set(session.public_keys()) == {"good", "edwards", "by label"}
    (note,) = session.notes()
    assert "several private keys are called 'twice'" in note
    session.public_keys()
    assert session.notes() == [note]


def test_key_that_the_token_cannot_sign_with_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_objects(monkeypatch, *pair("ec", b"1"), *pair("edwards", b"2", "ed25519"))
    session._mechanisms = MECHANISMS - {Mechanism.EDDSA}
    assert set(session.public_keys()) == {"ec"}
    (note,) = session.notes()
    assert "lacks the mechanism CKM_EDDSA that the ed25519 key 'edwards' needs" in note


def test_keys_go_by_their_configured_names(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_objects(
        monkeypatch,
        *pair("ROOT 2026", b"1"),
        *pair("same", b"2"),
        *pair("same", b"3"),
        *pair("other", b"4"),
        *pair("spare", b"5"),  # its label is the name of another key: it has none
        root=KeyMatch(label="ROOT 2026"),
        ocsp=KeyMatch(label="same", id=b"3"),
        spare=KeyMatch(id=b"4"),
    )
    keys = session.public_keys()
    assert set(keys) == {"root", "ocsp", "same", "spare"}
    assert len(set(keys.values())) == 4
    assert session.notes() == []
    session = with_objects(monkeypatch, *pair("a", b"1"), *pair("b", b"1"), key=KeyMatch(id=b"1"))
    assert session.public_keys() == {}
    assert "several private keys are called 'key'" in session.notes()[0]


def test_key_that_is_half_written_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = FakePublic("rsa", b"1"), FakePublic("ec", b"2"), FakePublic("edwards", b"4", "ed25519")
    halves[0].facts |= {Attribute.KEY_TYPE: KeyType.RSA, Attribute.PUBLIC_EXPONENT: b"", Attribute.MODULUS: b""}
    halves[1].facts |= {Attribute.EC_POINT: b""}
    halves[2].facts |= {Attribute.EC_POINT: b""}
    privates = FakePrivate("rsa", b"1"), FakePrivate("ec", b"2"), FakePrivate("edwards", b"4")
    session = with_objects(monkeypatch, *halves, *privates, *pair("good", b"3"))
    assert set(session.public_keys()) == {"good"}
    assert len(session.notes()) == 3
    for name, note in zip(("rsa", "ec", "edwards"), session.notes(), strict=True):
        assert f"the public key {name!r} cannot be read (ValueError)" in note


NOT_UTF8 = UnicodeDecodeError("utf-8", b"Schl\xfcssel", 4, 5, "invalid start byte")
NO_CURVE = {
    Attribute.EC_PARAMS: bytes.fromhex("06082a811ccf5501822d")
}  # sm2p256v1: OpenSSL as we have it lacks it
FOREIGN: list[tuple[dict[Attribute, Any], dict[Attribute, Any], list[tuple[str, str]]]] = [
    (NO_CURVE, {}, [("public key 'foreign'", "UnsupportedAlgorithm")]),
    ({Attribute.EC_PARAMS: b"\x30\x03\x02\x01\x01"}, {}, [("public key 'foreign'", "ValueError")]),
    ({Attribute.EC_PARAMS: b""}, {}, [("public key 'foreign'", "ValueError")]),
    ({Attribute.KEY_TYPE: ValueError("0x80000001 is no KeyType")}, {}, [("public key 'foreign'", "ValueError")]),
    ({Attribute.KEY_TYPE: struct.error("8 bytes")}, {}, [("public key 'foreign'", "error")]),
    ({Attribute.EC_POINT: pkcs11.AttributeTypeInvalid()}, {}, [("public key 'foreign'", "AttributeTypeInvalid")]),
    ({Attribute.LABEL: NOT_UTF8}, {}, [("public key of id 99", "UnicodeDecodeError")]),
    ({}, {Attribute.LABEL: NOT_UTF8}, [("private key of id 99", "UnicodeDecodeError")]),
    ({}, {Attribute.ID: pkcs11.AttributeSensitive()}, [("private key 'foreign'", "AttributeSensitive")]),
    (
        {Attribute.LABEL: NOT_UTF8, Attribute.ID: NOT_UTF8},
        {Attribute.LABEL: NOT_UTF8, Attribute.ID: struct.error()},
        [
            ("public key without label and id", "UnicodeDecodeError"),
            ("private key without label and id", "error"),
        ],
    ),
]


@pytest.mark.parametrize(("public", "private", "told"), FOREIGN)
@pytest.mark.parametrize("first", [True, False])
def test_foreign_key_that_cannot_be_read_keeps_nothing_from_opening(
    monkeypatch: pytest.MonkeyPatch,
    public: dict[Attribute, Any],
    private: dict[Attribute, Any],
    told: list[tuple[str, str]],
    first: bool,
) -> None:
    foreign = pair("foreign", b"\x99")
    foreign[0].facts |= public
    foreign[1].facts |= private
    good = pair("good", b"1")
    session = with_objects(monkeypatch, *((*foreign, *good) if first else (*good, *foreign)))
    assert set(session.public_keys()) == {"good"}
    assert len(session.notes()) == len(told)
    for (name, error), note in zip(told, session.notes(), strict=True):
        assert f"the {name} cannot be read ({error}) and is left alone" in note
    assert set(session.public_keys()) == {"good"}
    assert len(session.notes()) == len(told)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("attribute", [Attribute.ID, Attribute.LABEL])
@pytest.mark.parametrize(
    "error", [pkcs11.SessionHandleInvalid(), pkcs11.FunctionFailed(), pkcs11.ObjectHandleInvalid()]
)
def test_attribute_that_the_session_fails_at_is_no_key_that_vanished(
    monkeypatch: pytest.MonkeyPatch, half: int, attribute: Attribute, error: pkcs11.PKCS11Error
) -> None:
    keys = pair("good", b"" if attribute is Attribute.LABEL else b"1")
    keys[half].facts[attribute] = error
    session = with_objects(monkeypatch, *keys, *pair("other", b"2"))
    with pytest.raises(LaneStartError, match=f"keys cannot be listed: {classified(error)}"):
        session.public_keys()
    assert session.notes() == []


def test_truth_of_any_length_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else python-pkcs11 raises from inside a search, and what comes behind that object is lost."""
    token = FakeToken()
    opened(monkeypatch, token)
    for attribute in (Attribute.SIGN, Attribute.DECAPSULATE):
        for octets, truth in ((b"", False), (b"\0", False), (b"\1", True), (b"\1" + bytes(7), True)):
            assert token.mapper.unpack_attributes(attribute, octets) is truth
        assert token.mapper.pack_attribute(attribute, True) == b"\1"


@pytest.mark.parametrize("unreadable", [ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY])
def test_object_that_cannot_be_read_is_no_key_that_vanished(
    monkeypatch: pytest.MonkeyPatch, unreadable: ObjectClass
) -> None:
    """python-pkcs11 shows less than a key then; passing it over, a lane would be ready and without its key."""
    session = with_objects(monkeypatch, *pair("good", b"1"), unreadable)
    with pytest.raises(LaneStartError, match=r"keys cannot be listed: CKR_FUNCTION_FAILED \(.*attributes"):
        session.public_keys()
