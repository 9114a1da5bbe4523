"""Sessions of PKCS #11 tokens, in this process and over stand-ins: opening, finding keys, healing."""

from typing import Any

import msgspec
import pkcs11
import pytest
from pkcs11 import Mechanism, TokenFlag

from pkix.algorithms import KeyAlgorithm
from signer_pool.errors import LaneStartError, PinRejected, SigningFailed, TokenRefused
from signer_pool.lane import TokenFacts
from signer_pool.pkcs11_session import open_pkcs11_session
from tests.unit.signer_pool.fake_tokens import (
    CONFIG,
    FakePrivate,
    FakePublic,
    FakeToken,
    opened,
    pair,
    use,
    with_objects,
)


def test_general_error_before_the_login_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FakeToken()
    module = use(monkeypatch, token)
    module.errors = [pkcs11.GeneralError(), pkcs11.GeneralError()]
    slept: list[float] = []
    assert open_pkcs11_session(CONFIG, sleep=slept.append).public_keys() == {}
    assert module.searches == 3
    assert slept == [0.05, 0.1]
    # Once without PIN, to see that the token opens sessions at all, and once to stay.
    assert token.opened == [(True, None), (True, CONFIG.pin)]
    assert [session.closed for session in token.sessions] == [1, 0]


def test_lasting_general_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = use(monkeypatch, FakeToken())
    module.errors = [pkcs11.GeneralError()] * 9
    slept: list[float] = []
    with pytest.raises(LaneStartError, match=r"token-1.*/m\.so.*CKR_GENERAL_ERROR") as caught:
        open_pkcs11_session(CONFIG, sleep=slept.append)
    assert caught.value.code == 0x005
    assert module.searches == 5
    assert slept == [0.05, 0.1, 0.2, 0.4]


def test_general_error_of_a_login_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some modules answer so to a wrong PIN."""
    token = FakeToken(pkcs11.GeneralError())
    with pytest.raises(LaneStartError, match="CKR_GENERAL_ERROR"):
        opened(monkeypatch, token)
    assert token.logins == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (pkcs11.PinIncorrect, 0x0A0),
        (pkcs11.PinInvalid, 0x0A1),
        (pkcs11.PinLenRange, 0x0A2),
        (pkcs11.PinExpired, 0x0A3),
        (pkcs11.PinLocked, 0x0A4),
        (pkcs11.UserPinNotInitialized, 0x102),
    ],
)
def test_refused_pin_is_one_login(
    monkeypatch: pytest.MonkeyPatch, error: type[pkcs11.PKCS11Error], code: int
) -> None:
    token = FakeToken(error())
    with pytest.raises(PinRejected, match=r"CKR_.*PIN.*not tried again") as caught:
        opened(monkeypatch, token)
    assert caught.value.code == code
    assert token.logins == 1
    assert CONFIG.pin not in str(caught.value)


@pytest.mark.parametrize("flag", [TokenFlag.USER_PIN_FINAL_TRY, TokenFlag.USER_PIN_LOCKED])
def test_last_try_is_left_to_a_person(monkeypatch: pytest.MonkeyPatch, flag: TokenFlag) -> None:
    token = FakeToken()
    token.flags = flag | TokenFlag.LOGIN_REQUIRED
    with pytest.raises(PinRejected, match="does not risk that"):
        opened(monkeypatch, token)
    assert token.logins == 0


def test_last_try_is_seen_although_it_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """python-pkcs11 reads the flags once for each object, and others may have used up the tries meanwhile."""
    token, later = FakeToken(), FakeToken()
    later.flags = TokenFlag.USER_PIN_FINAL_TRY
    token.later = later
    with pytest.raises(PinRejected, match="does not risk that"):
        opened(monkeypatch, token)
    assert token.logins == later.logins == 0
    later.flags = TokenFlag(0)
    opened(monkeypatch, token)
    assert (token.logins, later.logins) == (0, 1)


def test_token_that_is_gone_before_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FakeToken()

    def gone() -> FakeToken:
        raise pkcs11.TokenNotPresent

    token.slot.get_token = gone
    with pytest.raises(LaneStartError, match="CKR_TOKEN_NOT_PRESENT") as caught:
        opened(monkeypatch, token)
    assert (caught.value.code, token.logins) == (0x0E0, 0)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (pkcs11.DeviceRemoved(), "cannot be opened: CKR_DEVICE_REMOVED; check", 0x032),
        (pkcs11.PKCS11Error("OS exception while loading\n/m.so"), r"CKR_LIBRARY_LOAD_FAILED \(OS exc", 0x1B7),
        (pkcs11.PKCS11Error("Unmapped error code 0x80000001"), r"CKR_VENDOR_DEFINED 0x80000001", 0x80000001),
    ],
)
def test_start_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, code: int
) -> None:
    with pytest.raises(LaneStartError, match=message) as caught:
        opened(monkeypatch, FakeToken(error))
    assert caught.value.code == code
    assert not isinstance(caught.value, PinRejected)
    assert "token-1" in str(caught.value)
    assert "/m.so" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wanted",
    [
        {"token_label": "other"},
        {"serial": "0002"},
        {"manufacturer": "Fake"},
        {"model": "Fake 3"},
        {"slot_id": 6},
        {"slot_id": 0},
    ],
)
def test_token_that_differs_in_one_thing_is_another_one(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    with pytest.raises(LaneStartError, match="no such token") as caught:
        opened(monkeypatch, FakeToken(), msgspec.structs.replace(CONFIG, **wanted))
    assert caught.value.code == 0x0E0


def test_what_the_module_has_instead_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = msgspec.structs.replace(CONFIG, token_label="absent", serial="9", slot_id=0)
    module = use(monkeypatch, FakeToken())
    looked_for = r"no such token \(serial 9, slot-id 0\)"
    with pytest.raises(LaneStartError, match=looked_for + r".*The module has 'token-1' \(serial 0001\)$"):
        open_pkcs11_session(absent)
    module.tokens = ()
    with pytest.raises(LaneStartError, match=looked_for + ".*The module has no token at all$"):
        open_pkcs11_session(absent)
    module.errors = [pkcs11.NoSuchToken(), pkcs11.DeviceError()]
    with pytest.raises(LaneStartError, match=r"The module has tokens that cannot be listed$"):
        open_pkcs11_session(absent)


def test_token_is_found_by_all_that_is_known_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = FakeToken(slot_id=0), FakeToken(slot_id=1), FakeToken(slot_id=2)
    tokens[2].serial = b"0002"
    use(monkeypatch, *tokens)
    for wanted, found in (({"slot_id": 0}, 0), ({"slot_id": 1}, 1), ({"serial": "0002"}, 2)):
        everything = {"manufacturer": "Fakes", "model": "Fake 2", **wanted}
        open_pkcs11_session(msgspec.structs.replace(CONFIG, **everything))
        assert [token.logins for token in tokens] == [int(number == found) for number in range(3)]
        tokens[found].opened.clear()
    nameless = msgspec.structs.replace(CONFIG, token_label="", serial="0002")
    assert "serial 0002" in open_pkcs11_session(nameless).token
    with pytest.raises(LaneStartError, match=r"several tokens match; add serial=… to its URI"):
        open_pkcs11_session(CONFIG)


def test_what_a_token_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(monkeypatch, FakeToken())
    assert session.token == "token 'token-1' of /m.so (Fakes Fake 2, serial 0001)"
    assert session.facts() == TokenFacts(
        label="token-1",
        manufacturer="Fakes",
        model="Fake 2",
        serial="0001",
        hardware="2.6",
        firmware="3.10",
        slot_id=5,
        mechanisms=(
            "sha256WithRSAEncryption",
            "rsassa-pss-sha256",
            "ecdsa-with-SHA256",
            "ecdsa-with-SHA384",
            "ecdsa-with-SHA512",
            "ed25519",
        ),
    )


def test_write_protected_token_is_opened_for_signing(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FakeToken(objects=pair("key", b"1"))
    token.is_write_protected = True
    assert set(opened(monkeypatch, token).public_keys()) == {"key"}
    assert token.opened == [(False, None), (False, CONFIG.pin)]


def test_pin_is_not_given_again_to_a_token_that_is_write_protected_all_of_a_sudden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = FakeToken(pkcs11.TokenWriteProtected())
    with pytest.raises(LaneStartError, match="CKR_TOKEN_WRITE_PROTECTED"):
        opened(monkeypatch, token)
    assert token.logins == 1


@pytest.mark.parametrize(
    ("curve", "name", "mechanism", "data"),
    [
        ("secp256r1", "ecdsa-with-SHA256", Mechanism.ECDSA, 32),
        ("ed25519", "ed25519", Mechanism.EDDSA, 5),
        ("secp256r1", "rsassa-pss-sha384", Mechanism.SHA384_RSA_PKCS_PSS, 5),
    ],
)
def test_how_the_token_is_asked(
    monkeypatch: pytest.MonkeyPatch, curve: str, name: str, mechanism: Mechanism, data: int
) -> None:
    private = FakePrivate("key", b"1", b"\1\2")
    session = with_objects(monkeypatch, FakePublic("key", b"1", curve), private)
    session.public_keys()
    signature = session.signer("key", name)(b"bytes")
    ((asked, how),) = private.asked
    assert len(asked) == data
    assert (asked == b"bytes") is (data == 5)
    pss = (Mechanism.SHA384, pkcs11.MGF.SHA384, 48) if "pss" in name else None
    assert how == {"mechanism": mechanism, "mechanism_param": pss, "buffer_size": 1024}
    assert signature == (bytes.fromhex("3006020101020102") if data == 32 else b"\1\2")


def test_token_errors_while_signing_carry_their_ckr(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_objects(monkeypatch, FakePublic("key", b"1"), FakePrivate("key", b"1", pkcs11.DeviceError()))
    session.public_keys()
    with pytest.raises(TokenRefused, match=r"token-1.*CKR_DEVICE_ERROR") as caught:
        session.signer("key", "ecdsa-with-SHA256")(b"tbs")
    assert caught.value.ckr.code == 0x030
    with pytest.raises(TokenRefused, match="no key 'other'") as caught:
        session.signer("other", "ecdsa-with-SHA256")
    assert caught.value.ckr.code == 0x060


def test_token_errors_outside_signing(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FakeToken()
    session = opened(monkeypatch, token)
    session.touch()
    token.sessions[-1].error = pkcs11.SessionHandleInvalid()
    with pytest.raises(LaneStartError, match="CKR_SESSION_HANDLE_INVALID") as listing:
        session.public_keys()
    assert listing.value.code == 0x0B3
    with pytest.raises(SigningFailed, match="CKR_SESSION_HANDLE_INVALID"):
        session.generate("key", KeyAlgorithm.EC_P256)
    with pytest.raises(TokenRefused, match="CKR_SESSION_HANDLE_INVALID") as touching:
        session.touch()
    assert touching.value.ckr.code == 0x0B3
