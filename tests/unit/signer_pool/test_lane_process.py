"""The child's side, over a socket pair in this process."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from pkix.algorithms import KeyAlgorithm
from signer_pool import lane_process
from signer_pool.ckr import Action, classify
from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SigningFailed, TokenRefused
from signer_pool.lane import (
    Failed,
    FailureKind,
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


class StubSession:
    """Signs by prefixing; refuses a TBS named `bad`, which is the caller's fault."""

    token = "stub"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asleep = False

    def public_keys(self) -> dict[str, bytes]:
        if self.error:
            raise self.error
        return {"key": b"spki"}

    def facts(self) -> TokenFacts:
        return TokenFacts(label="stub")

    def notes(self) -> list[str]:
        return ["a note"]

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        def sign(tbs: bytes) -> bytes:
            if tbs == b"bad":
                raise TokenRefused("CKR_DATA_INVALID", classify(0x20))
            return f"signed with {name} and {algorithm}: ".encode() + tbs

        return sign

    def reopen(self) -> None:
        raise AssertionError("not to be called")

    def touch(self) -> None:
        if self.asleep:
            raise TokenRefused("CKR_SESSION_CLOSED", classify(0xB0))
        self.asleep = True

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
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
    ],
)
def test_token_that_does_not_open(error: Exception, failed: Failed) -> None:
    with served(lambda _: StubSession(error)) as ask:
        assert ask(Open(CONFIG)) == failed


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
