"""The child's side, over a socket pair in this process."""

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pkcs11
import pytest

from pkix.algorithms import KeyAlgorithm
from signer_pool import lane_process
from signer_pool.ckr import Action, classify
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed, TokenRefused
from signer_pool.lane import (
    Failed,
    FailureKind,
    FrameError,
    Generate,
    Generated,
    KeySession,
    Open,
    Ping,
    Pong,
    Ready,
    Refusal,
    Relist,
    Reply,
    ReplyReader,
    Request,
    Sign,
    Signed,
    TokenFacts,
    encode_frame,
)
from signer_pool.lane_config import LaneConfig, SoftwareLaneConfig
from tests.unit.signer_pool.lanes import p256_config

CONFIG = SoftwareLaneConfig(directory="/d", passphrase="p")
UNEXPECTED = "the lane's process met an error that nobody expected"


class StubSession:
    """Signs by prefixing; refuses a TBS named `bad`, which is the caller's fault."""

    token = "stub"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asleep = False
        self.touching: Exception | None = None
        self.keys = {"key": b"spki"}

    def public_keys(self) -> dict[str, bytes]:
        if self.error:
            raise self.error
        return self.keys

    def facts(self) -> TokenFacts:
        return TokenFacts(label="stub")

    def notes(self) -> list[str]:
        return ["a note"]

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        def sign(tbs: bytes) -> bytes:
            if tbs == b"odd":
                raise ValueError("secret")
            if tbs == b"bad":
                raise TokenRefused("CKR_DATA_INVALID", classify(0x20))
            return f"signed with {name} and {algorithm}: ".encode() + tbs

        return sign

    def reopen(self) -> None:
        raise AssertionError("not to be called")

    def touch(self) -> None:
        if self.touching:
            raise self.touching
        if self.asleep:
            raise TokenRefused("CKR_SESSION_CLOSED", classify(0xB0))
        self.asleep = True

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
        if label == "odd":
            raise OverflowError("secret")
        if label == "key":
            raise KeyExists("exists")
        if algorithm is KeyAlgorithm.RSA_4096:
            raise SigningFailed("no mechanism")
        return b"new"


@contextmanager
def served(opener: Callable[[LaneConfig], KeySession]) -> Iterator[Callable[[Request], Reply]]:
    """Serve in a thread and yield a function that asks."""
    ours, theirs = socket.socketpair()
    thread = Thread(target=lane_process.serve, args=(theirs, opener))
    thread.start()
    reader = ReplyReader()

    def ask(request: Request) -> Reply:
        ours.sendall(encode_frame(request))
        while True:
            for reply in reader.feed(ours.recv(65536)):
                return reply

    with theirs:
        with ours:
            yield ask
        thread.join(10)
        assert not thread.is_alive()


def test_conversation() -> None:
    ready = Ready({"key": b"spki"}, "stub", TokenFacts(label="stub"), ["a note"])
    with served(lambda _: StubSession()) as ask:
        assert ask(Open(CONFIG)) == ready
        signed = ask(Sign(5, "key", "ed25519", [b"a", b"bad", b"c"]))
        assert isinstance(signed, Signed)
        assert signed.batch_id == 5
        assert signed.signatures == [b"signed with key and ed25519: a", b"", b"signed with key and ed25519: c"]
        assert signed.refusals == {1: Refusal(Action.CALLER, 0x20, "CKR_DATA_INVALID")}
        assert ask(Generate("new", KeyAlgorithm.EC_P256)) == Generated(b"new")
        assert ask(Generate("key", KeyAlgorithm.EC_P256)) == Failed(FailureKind.KEY_EXISTS, "exists")
        assert ask(Generate("n", KeyAlgorithm.RSA_4096)) == Failed(FailureKind.SIGNING, "no mechanism")
        assert ask(Relist()) == ready
        assert ask(Ping()) == Pong()
        assert ask(Ping()) == Failed(FailureKind.SIGNING, "CKR_SESSION_CLOSED", 0xB0)
        again = ask(Open(CONFIG))
        assert isinstance(again, Failed)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (PinRejected("no", 0xA0), Failed(FailureKind.PIN, "no", 0xA0)),
        (LaneStartError("no", 0xE0), Failed(FailureKind.START, "no", 0xE0)),
        (SigningFailed("no"), Failed(FailureKind.START, "no")),
        (
            UnicodeEncodeError("u", "secret", 0, 1, "s"),
            Failed(FailureKind.START, f"{UNEXPECTED}: UnicodeEncodeError"),
        ),
    ],
)
def test_token_that_does_not_open(error: Exception, failed: Failed) -> None:
    with served(lambda _: StubSession(error)) as ask:
        assert ask(Open(CONFIG)) == failed


def test_answer_that_cannot_be_sent_is_an_error_too() -> None:
    session = StubSession()
    session.keys = {"\udcfc": b"spki"}
    failed = f"{UNEXPECTED}: UnicodeEncodeError"
    with served(lambda _: session) as ask:
        assert ask(Open(CONFIG)) == Failed(FailureKind.START, failed)
    session.keys = {}
    with served(lambda _: session) as ask:
        assert isinstance(ask(Open(CONFIG)), Ready)
        session.keys = {"\udcfc": b"spki"}
        assert ask(Relist()) == Failed(FailureKind.SIGNING, failed)


def test_error_that_nobody_expects_does_not_end_the_process() -> None:
    session = StubSession()
    with served(lambda _: session) as ask:
        ask(Open(CONFIG))
        assert ask(Generate("odd", KeyAlgorithm.EC_P256)) == Failed(
            FailureKind.SIGNING, f"{UNEXPECTED}: OverflowError"
        )
        session.touching = RuntimeError("secret")
        assert ask(Ping()) == Failed(FailureKind.SIGNING, f"{UNEXPECTED}: RuntimeError")
        session.error = KeyError("secret")
        assert ask(Relist()) == Failed(FailureKind.SIGNING, f"{UNEXPECTED}: KeyError")
        signed = ask(Sign(5, "key", "ed25519", [b"a", b"odd", b"c"]))
        assert isinstance(signed, Signed)
        assert signed.signatures == [b"signed with key and ed25519: a", b"", b""]
        refusal = Refusal(Action.REPLACE, 0, "stub: ValueError while it signed")
        assert (signed.refusals, signed.spoils_lane) == ({1: refusal}, True)


def test_spoilt_session_is_touched_no_more() -> None:
    session = StubSession()
    ours, theirs = socket.socketpair()
    with theirs:
        requests: tuple[Request, ...] = (
            Open(CONFIG),
            Sign(5, "key", "ed25519", [b"odd"]),
            Sign(6, "key", "ed25519", [b"a"]),
            Ping(),
        )
        ours.sendall(b"".join(encode_frame(request) for request in requests))
        ours.shutdown(socket.SHUT_WR)
        lane_process.serve(theirs, lambda _: session)
        theirs.shutdown(socket.SHUT_WR)
        with ours:
            ready, signed = ReplyReader().feed(ours.recv(65536))
    assert isinstance(ready, Ready)
    assert isinstance(signed, Signed)
    assert (signed.batch_id, session.asleep) == (5, False)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1"])
def test_garbage_from_the_parent_is_the_end(garbage: bytes) -> None:
    for opening in (b"", encode_frame(Open(CONFIG))):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(opening + garbage)
            with pytest.raises(FrameError):
                lane_process.serve(theirs, lambda _: StubSession())


def test_first_request_must_open() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_frame(Relist()))
        lane_process.serve(theirs, lambda _: StubSession())


def test_parent_that_went_away_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(encode_frame(Open(CONFIG)))
        ours.close()
        lane_process.serve(theirs, lambda _: StubSession())


def test_main_ignores_what_the_parent_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(lane_process, "die_with_parent", lambda: calls.append("die with parent"))
    monkeypatch.setattr(sys, "unraisablehook", None)
    monkeypatch.setattr(signal, "signal", lambda *arguments: calls.append(arguments))
    ours, theirs = socket.socketpair()
    ours.sendall(encode_frame(Open(p256_config(tmp_path))))
    ours.shutdown(socket.SHUT_WR)
    assert lane_process.main([str(theirs.detach())]) == 0
    (ready,) = ReplyReader().feed(ours.recv(65536))
    ours.close()
    assert isinstance(ready, Ready)
    assert calls == [
        (signal.SIGINT, signal.SIG_IGN),
        (signal.SIGTERM, signal.SIG_IGN),
        "die with parent",
    ]
    assert sys.unraisablehook is lane_process.tell_unless_of_the_module


def test_destructors_of_the_library_are_not_told_as_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda unraisable: told.append(unraisable.exc_value))
    ours = ZeroDivisionError("ours")
    for error in (pkcs11.OperationNotInitialized(), ours):
        lane_process.tell_unless_of_the_module(cast("Any", SimpleNamespace(exc_value=error)))
    assert told == [ours]
