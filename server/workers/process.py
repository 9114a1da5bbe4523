"""The authority's end of one worker's process: starts it, asks it, ends it."""

import asyncio
import contextlib
import socket
import sys
from typing import Self, TypeVar

import msgspec

from server.config import environment
from server.workers.frames import LENGTH_BYTES, FrameError, Ready, body_length, decode_frame, encode_frame

T = TypeVar("T", bound=msgspec.Struct)
_END_GRACE_S = 1.0
_NOT_ITS_BUSINESS = ("CERTMILL_", "CREDENTIALS_", "NOTIFY_")
LOST: tuple[type[Exception], ...] = (OSError, EOFError, FrameError, TimeoutError)
"""What a process raises that is of no use any more."""


class WorkerProcess:
    """A process spawned anew and not forked: it has none of the authority's memory or descriptors."""

    def __init__(
        self, child: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._child = child
        self._reader = reader
        self._writer = writer
        self.version = ""

    @classmethod
    async def start(cls, module: str, first: msgspec.Struct | None = None) -> Self:
        """Start `python -m module FD`, send it the first frame if there is one, and wait until it is ready.

        Raises one of `LOST` and leaves nothing behind.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", module, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    env={n: v for n, v in environment().items() if not n.startswith(_NOT_ITS_BUSINESS)},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours)
        process = cls(child, reader, writer)
        try:
            if first is not None:
                writer.write(encode_frame(first))
            process.version = decode_frame(await process._read(), Ready).version
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    async def ask(self, request: msgspec.Struct, answer: type[T]) -> T:
        """Return the answer to a request; raises one of `LOST`. The caller sets the deadline, one at a time."""
        self._writer.write(encode_frame(request))
        return decode_frame(await self._read(), answer)

    async def ended(self) -> None:
        """Wait until the process has ended, by whomever."""
        await self._child.wait()

    async def end(self) -> None:
        """End and reap the process: by EOF, else SIGKILL. A hanging one gets no more than a second."""
        self._writer.close()
        try:
            async with asyncio.timeout(_END_GRACE_S):
                await self._child.wait()
        except TimeoutError:
            pass
        finally:
            if self._child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._child.kill()
                await self._child.wait()

    async def _read(self) -> bytes:
        head = await self._reader.readexactly(LENGTH_BYTES)  # IncompleteReadError is an EOFError
        return await self._reader.readexactly(body_length(head))
