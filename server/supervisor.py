"""`certmill serve`: starts the authority and the OCSP workers, and starts them again when they end.

Nothing else: no key, no database, no listener; a PIN only where somebody has typed it. The OCSP workers start
first and never wait for the authority, so relying parties get answers while it starts, restarts or is down.

What the end of a child means: exit code 78 of its first process, before it was ready, ends everything, for that is
a start that somebody is watching. After that nothing does. 78 is then tried again slowly, since the setting may be
mended meanwhile; anything else with a growing pause. A refused PIN is not tried again: that locks tokens.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from server.errors import StartRefused
from server.home import Home
from server.keys.pin import encode_pins
from server.notify import notifications, notify, received

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: somebody must mend something first
EXIT_TEMPORARY = 75  # EX_TEMPFAIL: an HSM, a disk or a database is not there now; it may be soon
PIN_REFUSED = str(errno.EACCES)
"""What a child says as ERRNO when a token refused its PIN."""
_STABLE_S = 60.0
_STOP_S = 20.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Pauses:
    """Seconds before a child is started again: longer and longer, or `slowly` while a setting is wrong."""

    growing: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
    slowly: float = 30.0


PAUSES = Pauses()


@dataclass(slots=True)
class _Words:
    """What a process has said of itself."""

    ready: bool = False
    status: str = ""
    errno: str = ""

    def take(self, fields: Mapping[str, str]) -> None:
        self.ready = self.ready or fields.get("READY") == "1"
        self.status = fields.get("STATUS", self.status)
        self.errno = fields.get("ERRNO", self.errno)


@dataclass(slots=True)
class _Child:
    """A child: what to start, what is written to its standard input; `words` of its present or last process."""

    name: str
    command: Sequence[str]
    told: bytes | None = None
    starts: int = 0
    words: _Words = field(default_factory=_Words)


class Supervisor:
    """Keeps the processes of one home running until asked to stop. The caller holds the supervisor's lock.

    `pins`: what somebody typed, for every authority that is started; handed over its standard input alone.
    `on_ready` is called once, when every child has said READY=1. `program` runs the commands of certmill.
    """

    def __init__(
        self,
        *,
        home: Home,
        workers: int,
        pins: Mapping[str, str],
        environ: Mapping[str, str],
        logger: FilteringBoundLogger,
        on_ready: Callable[[], None],
        program: Sequence[str] = (sys.executable, "-m", "server"),
        pauses: Pauses = PAUSES,
    ) -> None:
        self._environ = environ
        self._child_environ = {**environ, "NOTIFY_SOCKET": str(home.notify_socket)}
        self._socket = home.notify_socket
        self._logger = logger
        self._on_ready = on_ready
        self._program = program
        self._pauses = pauses
        self._stop = asyncio.Event()
        self._refusal: str | None = None
        self._announced = False
        self._words: dict[int, _Words] = {}  # by process id; a process may speak before we know that it is ours
        self._children = [
            _Child(f"ocsp-{number}", ["ocsp", "--number", str(number), "--supervised"])
            for number in range(workers)
        ]
        command = ["authority", "--supervised", *(["--pins-on-stdin"] if pins else [])]
        self._children.append(_Child("authority", command, encode_pins(pins) if pins else None))

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT; raises `StartRefused`, when everything has ended, if the start failed."""
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, self._stop.set)
        with notifications(self._socket) as receiver:
            loop.add_reader(receiver, self._hear, receiver)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for child in self._children:
                        tasks.create_task(self._keep(child, receiver))
            finally:
                loop.remove_reader(receiver)
        if self._refusal is not None:
            raise StartRefused(self._refusal)

    def _hear(self, receiver: socket.socket) -> None:
        """Take in what the children say of themselves."""
        for pid, fields in received(receiver):
            self._words.setdefault(pid, _Words()).take(fields)
        self._tell()

    def _tell(self) -> None:
        """Tell whoever started us how we are; the first time that all are ready, say so."""
        down = [": ".join(filter(None, (c.name, c.words.status))) for c in self._children if not c.words.ready]
        notify(self._environ, f"STATUS={'not ready: ' + '; '.join(down) if down else 'ready'}")
        if not down and not self._announced and not self._stop.is_set():
            self._announced = True
            notify(self._environ, "READY=1")
            self._on_ready()

    async def _keep(self, child: _Child, receiver: socket.socket) -> None:
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            code = await self._live_once(child, receiver)
            if self._stop.is_set():
                return
            was_ready, child.words.ready = child.words.ready, False
            self._tell()
            if code == EXIT_CONFIG and child.starts == 1 and not was_ready:
                told = child.words.status or f"{child.name} ended with exit code {code}; it says above why"
                self._refusal = self._refusal or told
                self._stop.set()
                return
            if code == EXIT_CONFIG and child.words.errno == PIN_REFUSED:
                self._give_up(child)
                return
            failures = 0 if time.monotonic() - began > _STABLE_S else failures + 1
            growing = self._pauses.growing
            pause = self._pauses.slowly if code == EXIT_CONFIG else growing[min(failures, len(growing) - 1)]
            self._logger.error(
                "process ended, will be started again",
                name=child.name,
                code=code,
                pause_s=pause,
                cause=child.words.status or None,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    def _give_up(self, child: _Child) -> None:
        self._logger.error(
            "process ended and is NOT started again, so that the token does not lock; the others go on. "
            "Correct the PIN, then stop certmill (SIGTERM) and start it",
            name=child.name,
            cause=child.words.status or None,
        )

    async def _live_once(self, child: _Child, receiver: socket.socket) -> int:
        """Run one process of the child to its end, last words included, and return its exit code."""
        child.starts += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *self._program,
                *child.command,
                stdin=PIPE if child.told else None,
                env=self._child_environ,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the children in order
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except OSError as error:  # no memory, too many processes: no reason to end those that run
            child.words = _Words(status=f"cannot be started: {error}")
            return EXIT_TEMPORARY
        child.words = self._words.setdefault(process.pid, _Words())
        self._tell()
        if child.told and process.stdin:
            process.stdin.write(child.told)
            process.stdin.close()
        code = await self._until_ended(process)
        self._hear(receiver)
        del self._words[process.pid]
        return code

    async def _until_ended(self, process: Process) -> int:
        """Wait until the process ends; when asked to stop, end it: SIGTERM, and SIGKILL after a while."""
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                process.terminate()
                _, late = await asyncio.wait({ended}, timeout=_STOP_S)
                if late:
                    process.kill()
            return await ended
        finally:
            stopping.cancel()
            if not ended.done():
                process.kill()


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Make what runs in the child before exec: it is told to end when the supervisor dies (prctl(2))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
