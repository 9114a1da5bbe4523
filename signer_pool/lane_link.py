"""The parent's end of a lane: starts the child process, talks to it, kills it, reaps it.

Invariants: requests are answered in order, so the head of `_pipe` is what the child works at, and its
deadline is the only timer; every `SignedCallback` is called exactly once, with None when the lane is lost.
"""

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

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
    FrameError,
    Generate,
    Generated,
    Lane,
    Open,
    Ping,
    Pong,
    Ready,
    Relist,
    Reply,
    ReplyReader,
    Sign,
    Signed,
    SignedCallback,
    TokenFacts,
    encode_frame,
)
from signer_pool.lane_config import LaneConfig

_CLOSE_GRACE_S = 2.0
_LONGEST_SERVICE_S = 86400.0
_ANSWERS: dict[type[Generate | Relist | Ping], type[Reply]] = {Generate: Generated, Relist: Ready, Ping: Pong}


@dataclass(slots=True, eq=False)
class _Expected:
    """A request that is not answered yet: a batch (`done`), or a question (`reply`, to be of type `answer`)."""

    deadline_s: float
    batch_id: int = 0
    count: int = 0
    done: SignedCallback | None = None
    reply: "asyncio.Future[Reply] | None" = field(default=None)
    answer: type[Reply] | None = None


async def open_lane(config: LaneConfig) -> Lane:
    """Start a child and wait until its token is open; a `LaneOpener`.

    The caller sets the deadline. Raises `LaneStartError`, `PinRejected`; leaves nothing behind when it does,
    or when it is cancelled.
    """
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(False)
        transport, link = await loop.create_connection(lambda: LaneLink(loop), sock=ours)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    try:
        try:
            link.child = await _spawn(theirs, config)
        finally:
            theirs.close()
        transport.write(encode_frame(Open(config)))
        await link.opened(config)
    except BaseException:
        link.kill("not_started")
        await link.close()
        raise
    return link


async def _spawn(theirs: socket.socket, config: LaneConfig) -> asyncio.subprocess.Process:
    """Start the child. A session of its own keeps the terminal's Ctrl-C away while it starts."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "signer_pool.lane_process",
        str(theirs.fileno()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=2,
        pass_fds=(theirs.fileno(),),
        env={**os.environ, **config.env},
        start_new_session=True,
    )


class LaneLink(asyncio.Protocol):
    """A `Lane` whose child process is at the other end of a socket pair."""

    child: asyncio.subprocess.Process | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.public_keys: Mapping[str, bytes] = {}
        self.facts = TokenFacts()
        self.notes: Sequence[str] = ()
        self._loop = loop
        self._reader = ReplyReader()
        self._token = ""
        self._pipe: deque[_Expected] = deque()
        self._next_batch_id = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[str] = loop.create_future()
        self._transport: asyncio.Transport | None = None

    @property
    def token(self) -> str:
        """Describe the token."""
        return self._token

    @property
    def pid(self) -> int:
        """Return the child's process id; 0 before it is started."""
        return self.child.pid if self.child else 0

    @property
    def in_flight(self) -> int:
        """Count the requests that are not answered yet."""
        return len(self._pipe)

    @property
    def is_asked(self) -> bool:
        """Tell whether a question is among them."""
        return any(expected.done is None for expected in self._pipe)

    async def opened(self, config: LaneConfig) -> None:
        """Wait for the first answer; raises `LaneStartError`, `PinRejected`. The caller sets the deadline."""
        first = _Expected(deadline_s=float("inf"), reply=self._loop.create_future())
        self._pipe.append(first)
        try:
            ready = await cast("asyncio.Future[Reply]", first.reply)
        except PoolUnavailable:
            raise LaneStartError(
                f"{config.token}: the module ended its process while the token was opened; see its log"
            ) from None
        if not isinstance(ready, Ready):
            raise LaneStartError(f"{config.token}: the lane's process does not speak our language")

    def send(
        self, key: str, algorithm: str, tbs: Sequence[bytes], done: SignedCallback, *, deadline_s: float
    ) -> None:
        """Send a batch; `done` is called exactly once, never from inside this call."""
        self._next_batch_id += 1
        expected = _Expected(deadline_s, self._next_batch_id, len(tbs), done)
        self._expect(expected, Sign(expected.batch_id, key, algorithm, tbs))

    async def ask(self, request: Generate | Relist | Ping, *, deadline_s: float) -> Reply:
        """Send another request and wait; raises what the child's `Failed` stands for, or `PoolUnavailable`."""
        answer = _ANSWERS[type(request)]
        expected = _Expected(deadline_s=deadline_s, reply=self._loop.create_future(), answer=answer)
        self._expect(expected, request)
        return await cast("asyncio.Future[Reply]", expected.reply)

    async def wait_lost(self) -> str:
        """Wait until the lane is lost and return the reason."""
        return await asyncio.shield(self._lost)

    def kill(self, reason: str) -> None:
        """Be done with the lane at once. What is in flight is given back in the loop's next iteration.

        The child ends at EOF, and `close` sees to that. SIGKILL is for children that hang: in the middle of a
        login it can cost the token (SoftHSM 2.6 truncates and rewrites the file with the keys' key each time).
        """
        self._lose(reason)

    async def close(self) -> None:
        """End the child and reap it: by EOF, else SIGKILL. Idempotent; raises nothing of its own.

        A child that even SIGKILL does not end at once (a driver's call that the kernel cannot interrupt) is left
        to the kernel.
        """
        self._lose("closed")
        if self.child is None:
            return
        try:
            await _ended(self.child)
        finally:
            if self.child.returncode is None:
                self.child.kill()
                await _ended(self.child)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in answers; whatever is not an answer to what we asked costs the lane its life."""
        try:
            for reply in self._reader.feed(data):
                self._on_reply(reply)
        except FrameError:
            self.kill("protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what is in flight: the child has ended, or we have ended it."""
        self._lose("died")

    def _expect(self, expected: _Expected, request: Sign | Generate | Relist | Ping) -> None:
        self._pipe.append(expected)
        if self._lost.done():
            self._loop.call_soon(self._give_back)
            return
        cast("asyncio.Transport", self._transport).write(encode_frame(request))
        if len(self._pipe) == 1:
            self._watch_head()

    def _on_reply(self, reply: Reply) -> None:
        if not self._pipe:
            raise FrameError("an answer to nothing")
        expected = self._pipe[0]
        if expected.done is not None:
            if not isinstance(reply, Signed) or not _answers(reply, expected):
                raise FrameError("not the answer to the batch")
            self._pipe.popleft()
            self._watch_head()
            expected.done(reply)
            return
        if expected.answer is not None and not isinstance(reply, (Failed, expected.answer)):
            raise FrameError("not the answer to the question")
        self._pipe.popleft()
        self._watch_head()
        if isinstance(reply, Ready):
            self.public_keys, self._token = reply.public_keys, reply.token
            self.facts, self.notes = reply.facts, reply.notes
        if expected.reply is not None and not expected.reply.done():
            if isinstance(reply, Failed):
                expected.reply.set_exception(_error(reply))
            else:
                expected.reply.set_result(reply)

    def _watch_head(self) -> None:
        """Start the deadline of what the child works at now."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._pipe:
            self._deadline = self._loop.call_later(self._pipe[0].deadline_s, self._overdue)

    def _overdue(self) -> None:
        if self.child is not None and self.child.returncode is None:
            self.child.kill()
        self._lose("deadline")

    def _lose(self, reason: str) -> None:
        if self._lost.done():
            return
        self._lost.set_result(reason)
        if self._deadline is not None:
            self._deadline.cancel()
        cast("asyncio.Transport", self._transport).abort()
        self._loop.call_soon(self._give_back)

    def _give_back(self) -> None:
        while self._pipe:
            expected = self._pipe.pop()  # the newest first: each goes to the front of the backlog
            if expected.done is not None:
                expected.done(None)
            elif expected.reply is not None and not expected.reply.done():
                expected.reply.set_exception(PoolUnavailable("the lane was lost before it answered"))


async def _ended(child: asyncio.subprocess.Process) -> None:
    """Wait a moment for the child's end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_GRACE_S):
            await child.wait()


def _error(failed: Failed) -> SignerPoolError:
    """Return the error that a `Failed` frame stands for."""
    if failed.kind is FailureKind.PIN:
        return PinRejected(failed.message, failed.code)
    if failed.kind is FailureKind.START:
        return LaneStartError(failed.message, failed.code)
    return (KeyExists if failed.kind is FailureKind.KEY_EXISTS else SigningFailed)(failed.message)


def _answers(reply: Signed, expected: _Expected) -> bool:
    """Tell whether this can be true of the batch; a number that is mad would harm whoever counts with it."""
    return (
        reply.batch_id == expected.batch_id
        and len(reply.signatures) == expected.count
        and 0.0 <= reply.service_s <= _LONGEST_SERVICE_S
        and all(0 <= index < expected.count for index in reply.refusals)
        and all(times >= 0 for times in reply.healed.values())
    )
