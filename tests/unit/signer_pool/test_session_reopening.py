"""Sessions that are lost: replaced while the login lives, and never with the PIN again."""

import pkcs11
import pytest

from signer_pool.errors import LaneStartError, PinRejected
from tests.unit.signer_pool.fake_tokens import (
    CONFIG,
    FakePrivate,
    FakePublic,
    FakeToken,
    opened,
    pair,
)


def test_session_that_is_gone_is_replaced_and_its_keys_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = FakePrivate("key", b"1", pkcs11.SessionHandleInvalid()), FakePrivate("key", b"1", b"\1\2")
    token = FakeToken(objects=(FakePublic("key", b"1"), old))
    session = opened(monkeypatch, token)
    session.public_keys()
    token.objects = (token.objects[0], new)
    session.reopen()
    session.signer("key", "ecdsa-with-SHA256")(b"tbs")
    assert (len(old.asked), len(new.asked)) == (0, 1)
    # The PIN is not given again, and the old session is not closed: that would log the new one out.
    assert token.opened[-2:] == [(True, CONFIG.pin), (True, None)]
    assert token.logins == 1
    assert [lost.closed for lost in token.sessions] == [1, 0, 0]


def hidden(key: tuple[FakePublic, FakePrivate]) -> tuple[FakePublic]:
    """Return what shows of a key without login."""
    return key[:1]


def test_login_that_ended_with_the_session_is_left_to_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    key, open_to_all = pair("key", b"1"), pair("open to all", b"2")
    for objects, without_login in (
        (key, hidden(key)),
        (key, ()),  # the public half is private, too
        ((*key, *open_to_all), (*hidden(key), *open_to_all)),
    ):
        token = FakeToken(objects=objects)
        session = opened(monkeypatch, token)
        session.public_keys()
        token.objects = without_login
        with pytest.raises(LaneStartError, match=r"token-1.*CKR_USER_NOT_LOGGED_IN.*new process") as caught:
            session.reopen()
        assert caught.value.code == 0x101
        assert not isinstance(caught.value, PinRejected)
        assert token.logins == 1


def test_session_without_keys_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then finds those that another lane has made meanwhile."""
    token = FakeToken()
    session = opened(monkeypatch, token)
    assert session.public_keys() == {}
    session.reopen()
    token.objects = pair("new", b"1")
    session.reopen()
    assert set(session.public_keys()) == {"new"}
    assert token.logins == 1


def test_login_that_was_there_before_us_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only believed where it shows: a module may be wrong about it, and then hides every private key."""
    token = FakeToken(pkcs11.UserAlreadyLoggedIn(), objects=pair("key", b"1"))
    session = opened(monkeypatch, token)
    assert token.opened[-2:] == [(True, CONFIG.pin), (True, None)]
    assert set(session.public_keys()) == {"key"}
    token = FakeToken(pkcs11.UserAlreadyLoggedIn(), objects=hidden(pair("key", b"1")))
    session = opened(monkeypatch, token)
    with pytest.raises(LaneStartError, match="CKR_USER_NOT_LOGGED_IN"):
        session.public_keys()
    token = FakeToken(objects=hidden(pair("key", b"1")))
    assert opened(monkeypatch, token).public_keys() == {}  # a login of its own: there are no private keys


def test_sessions_are_not_replaced_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FakeToken()
    session = opened(monkeypatch, token)
    for _ in range(3):
        session.reopen()
    with pytest.raises(LaneStartError, match="lost its session 4 times"):
        session.reopen()
    assert len(token.sessions) == 5  # each of the last four is open until the process ends
    assert token.logins == 1


@pytest.mark.parametrize(
    ("error", "kind"), [(pkcs11.PinLocked, PinRejected), (pkcs11.SessionCount, LaneStartError)]
)
def test_token_that_opens_no_other_session(
    monkeypatch: pytest.MonkeyPatch, error: type[pkcs11.PKCS11Error], kind: type[Exception]
) -> None:
    token = FakeToken()
    session = opened(monkeypatch, token)
    token.session_errors = [error()]
    with pytest.raises(LaneStartError, match=r"token-1.*CKR_") as caught:
        session.reopen()
    assert type(caught.value) is kind
    assert token.logins == 1
