"""The parent's end of a lane, against a child that is the other end of a socket in this process."""

import asyncio
import math
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from pkix.algorithms import KeyAlgorithm
from signer_pool import lane_link
from signer_pool.ckr import Action
from signer_pool.errors import (
    KeyExists,
    LaneStartError,
    PinRejected,
    PoolUnavailable,
    SignerPoolError,
    SigningFailed,
)
from signer_pool.lane import (
    Failed,
    FailureKind,
    Generate,
    Generated,
    Ping,
    Pong,
    Ready,
    Refusal,
    Relist,
    Reply,
    Signed,
    TokenFacts,
    encode_frame,
)
from signer_pool.lane_config import SoftwareLaneConfig
from signer_pool.lane_link import LaneLink, open_lane
from tests.unit.signer_pool.lanes import p256_config

CONFIG = SoftwareLaneConfig(directory="/d", passphrase="p")


class Peer:
    """A link and the other end of its socket."""

    def __init__(self, link: LaneLink, other_end: socket.socket) -> None:
        self.link = link
        self._other_end = other_end
        self.answers: list[Signed | None] = []

    def say(self, *replies: Reply) -> None:
        self.say_bytes(b"".join([encode_frame(reply) for reply in replies]))

    def say_bytes(self, data: bytes) -> None:
        self._other_end.sendall(data)

    async def answered(self, count: int) -> None:
        while len(self.answers) < count:  # noqa: ASYNC110 - what comes through a socket has no event
            await asyncio.sleep(0)

    def send(self, *tbs: bytes, deadline_s: float = 10.0) -> None:
        self.link.send("key", "ecdsa-with-SHA256", tbs, self.answers.append, deadline_s=deadline_s)

    def hang_up(self) -> None:
        self._other_end.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    _, link = await loop.create_connection(lambda: LaneLink(loop), sock=ours)
    with theirs:
        yield Peer(link, theirs)
        await link.close()


def signed(batch_id: int, *signatures: bytes) -> Signed:
    return Signed(batch_id, list(signatures), {}, 0.0)


async def test_answers_find_their_batch_in_whatever_pieces_they_come(peer: Peer) -> None:
    peer.send(b"a")
    peer.send(b"b", b"c")
    assert peer.link.in_flight == 2
    replies = [signed(1, b"A"), signed(2, b"B", b"C")]
    for byte in b"".join([encode_frame(reply) for reply in replies]):
        peer.say_bytes(bytes((byte,)))
        await asyncio.sleep(0)
    await peer.answered(2)
    assert peer.answers == replies
    assert peer.link.pid == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\0\0\0\1\xc1",
        b"\xff\xff\xff\xff",
        encode_frame(signed(2, b"A")),
        encode_frame(signed(1, b"A", b"B")),
        encode_frame(Generated(b"key")),
        encode_frame(Signed(1, [b"A"], {}, -1.0)),
        encode_frame(Signed(1, [b"A"], {}, math.nan)),
        encode_frame(Signed(1, [b"A"], {}, math.inf)),
        encode_frame(Signed(1, [b"A"], {}, 1.0, {0x30: -1})),
        encode_frame(Signed(1, [b""], {1: Refusal(Action.REPLACE, 0, "of nothing")}, 1.0)),
    ],
)
async def test_whatever_is_no_answer_costs_the_lane_its_life(peer: Peer, nonsense: bytes) -> None:
    peer.send(b"a")
    peer.say_bytes(nonsense)
    assert await peer.link.wait_lost() == "protocol"
    await asyncio.sleep(0)
    assert peer.answers == [None]


@pytest.mark.parametrize("wrong", [Pong(), Ready({}, ""), signed(1)])
async def test_answer_to_another_question_costs_the_lane_its_life(peer: Peer, wrong: Reply) -> None:
    asked = asyncio.ensure_future(peer.link.ask(Generate("key", KeyAlgorithm.EC_P256), deadline_s=10))
    await asyncio.sleep(0)
    assert peer.link.is_asked
    peer.say(wrong)
    with pytest.raises(PoolUnavailable):
        await asked
    assert await peer.link.wait_lost() == "protocol"


async def test_answer_to_nothing_costs_the_lane_its_life(peer: Peer) -> None:
    peer.say(signed(1))
    assert await peer.link.wait_lost() == "protocol"


async def test_lost_lane_gives_everything_back_once(peer: Peer) -> None:
    peer.send(b"a")
    asked = asyncio.ensure_future(peer.link.ask(Relist(), deadline_s=10))
    cancelled = asyncio.ensure_future(peer.link.ask(Relist(), deadline_s=10))
    await asyncio.sleep(0)
    cancelled.cancel()
    peer.hang_up()
    assert await peer.link.wait_lost() == "died"
    with pytest.raises(PoolUnavailable):
        await asked
    peer.send(b"b")
    assert peer.answers == [None]
    await asyncio.sleep(0)
    assert peer.answers == [None, None]
    peer.link.kill("again")
    assert await peer.link.wait_lost() == "died"


async def test_answer_for_a_cancelled_question_is_dropped(peer: Peer) -> None:
    cancelled = asyncio.ensure_future(peer.link.ask(Relist(), deadline_s=10))
    await asyncio.sleep(0)
    cancelled.cancel()
    peer.send(b"a")
    facts = TokenFacts(label="t")
    peer.say(Ready({"key": b"spki"}, "a token", facts, ["a note"]), signed(1, b"A"))
    await peer.answered(1)
    assert peer.link.token == "a token"
    assert peer.link.public_keys == {"key": b"spki"}
    assert (peer.link.facts, peer.link.notes) == (facts, ["a note"])


async def test_what_was_refused_is_raised_as_the_error_it_stands_for(peer: Peer) -> None:
    errors: list[tuple[FailureKind, type[SignerPoolError]]] = [
        (FailureKind.PIN, PinRejected),
        (FailureKind.START, LaneStartError),
        (FailureKind.KEY_EXISTS, KeyExists),
        (FailureKind.SIGNING, SigningFailed),
    ]
    for kind, error in errors:
        asked = asyncio.ensure_future(peer.link.ask(Ping(), deadline_s=10))
        peer.say(Failed(kind, "a sentence", 0x30))
        with pytest.raises(error, match="a sentence") as caught:
            await asked
        assert type(caught.value) is error
        assert getattr(caught.value, "code", 0x30) == 0x30
    asked = asyncio.ensure_future(peer.link.ask(Ping(), deadline_s=10))
    peer.say(Pong())
    assert await asked == Pong()


async def test_deadline_counts_for_each_request_from_when_it_is_the_head(peer: Peer) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.ensure_future(peer.link.ask(Relist(), deadline_s=10))
    await asyncio.sleep(0)
    peer.send(b"a", deadline_s=0.05)
    await asyncio.sleep(0.1)
    assert peer.answers == []
    peer.say(Ready({}, ""))
    await asked
    started = loop.time()
    assert await peer.link.wait_lost() == "deadline"
    assert loop.time() - started >= 0.04
    await asyncio.sleep(0)
    assert peer.answers == [None]


async def test_child_that_ends_while_opening(peer: Peer) -> None:
    peer.hang_up()
    with pytest.raises(LaneStartError, match="ended its process"):
        await peer.link.opened(CONFIG)


async def test_child_that_speaks_another_language(peer: Peer) -> None:
    peer.say(Generated(b"key"))
    with pytest.raises(LaneStartError, match="our language"):
        await peer.link.opened(CONFIG)


async def test_loop_that_does_not_connect_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError("no more descriptors")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refuse)
    with pytest.raises(OSError, match="no more"):
        await open_lane(p256_config(tmp_path))


class Undying:
    """A child that ends neither at EOF nor at once when it is killed."""

    pid = 1
    returncode = None

    def __init__(self) -> None:
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1

    async def wait(self) -> int:
        return await asyncio.Future()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_child_that_does_not_end_is_killed_and_then_left_to_the_kernel(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    """Nothing of its own leaves `close`: an error would take the place of the one that is on its way."""
    monkeypatch.setattr(lane_link, "_CLOSE_GRACE_S", 0.05)
    child = peer.link.child = cast("Any", Undying())
    closing = asyncio.ensure_future(peer.link.close())
    if is_cancelled:
        await asyncio.sleep(0.01)
        closing.cancel()
    await asyncio.wait([closing], timeout=5)
    assert closing.cancelled() if is_cancelled else closing.result() is None
    assert child.kills == 1
    peer.link.child = None


async def test_process_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(FileNotFoundError):
        await open_lane(p256_config(tmp_path))
