"""The authority's end of one linter's process: starts it, asks it, ends it."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence
from typing import Self

from server.config import environment
from server.linting.findings import Finding
from server.linting.frames import (
    LENGTH_BYTES,
    FrameError,
    Lint,
    Linted,
    Ready,
    body_length,
    decode_frame,
    encode_frame,
)

_END_GRACE_S = 1.0
_NOT_ITS_BUSINESS = ("CERTMILL_", "CREDENTIALS_", "NOTIFY_")
PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "server.linting.worker")
LOST: tuple[type[Exception], ...] = (OSError, EOFError, FrameError, TimeoutError)
"""What a process raises that is of no use any more."""


class LinterProcess:
    """A process that lints, spawned anew and not forked: it has none of the authority's memory or descriptors."""

    def __init__(
        self, child: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._child = child
        self._reader = reader
        self._writer = writer
        self.version = ""

    @classmethod
    async def start(cls, program: Sequence[str] = PROGRAM) -> Self:
        """Start a process and wait until it is ready; raises one of `LOST` and leaves nothing behind."""
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                child = await asyncio.create_subprocess_exec(
                    *program,
                    str(theirs.fileno()),
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
            process.version = decode_frame(await process._read(), Ready).version
        except BaseException:
            await process.end()
            raise
        return process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    async def lint(self, certificate_der: bytes, linter: str) -> list[Finding]:
        """Lint one certificate; raises one of `LOST`. The caller sets the deadline and asks one at a time."""
        self._writer.write(encode_frame(Lint(linter, certificate_der)))
        return decode_frame(await self._read(), Linted).findings

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
