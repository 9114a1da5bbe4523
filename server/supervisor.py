"""`certmill serve`: starts the authority and the OCSP workers, and starts them again when they end.

Nothing else: no key, no database, no listener. The OCSP workers start first and never wait for the authority,
so relying parties get answers while the authority starts, restarts or is down.
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
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from ocsp.errors import ListenError
from server.config import Address
from server.notify import notify

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: starting again would not help
EXIT_TEMPORARY = 75  # EX_TEMPFAIL: an HSM, a disk or a database is not there now; it may be soon
_BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_STABLE_S = 60.0
_STOP_S = 20.0
_PR_SET_PDEATHSIG = 1


class Supervisor:
    """Keeps a set of child processes running until asked to stop."""

    def __init__(
        self,
        *,
        home: Path,
        workers: int,
        environ: Mapping[str, str],
        logger: FilteringBoundLogger,
        on_ready: Callable[[], None],
    ) -> None:
        self._home = home
        self._workers = workers
        self._environ = environ
        self._logger = logger
        self._on_ready = on_ready
        self._stop = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        """Run until SIGTERM, SIGINT, or a child that ends with `EXIT_CONFIG`; returns the exit code."""
        loop = asyncio.get_running_loop()
        for ending in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(ending, self._stop.set)
        with _notify_socket(self._home / "run" / "notify.sock") as receiver:
            loop.add_reader(receiver, self._on_notification, receiver)
            environ = {**self._environ, "NOTIFY_SOCKET": str(self._home / "run" / "notify.sock")}
            try:
                async with asyncio.TaskGroup() as tasks:
                    for number in range(self._workers):
                        name, command = f"ocsp-{number}", ["ocsp", "--number", str(number)]
                        tasks.create_task(self._keep(name, command, self._environ))
                    tasks.create_task(self._keep("authority", ["authority"], environ))
            finally:
                loop.remove_reader(receiver)
        return self._exit_code

    def _on_notification(self, receiver: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            if b"READY=1" in receiver.recv(4096):
                notify(self._environ, "READY=1")
                self._on_ready()

    async def _keep(self, name: str, command: list[str], environ: Mapping[str, str]) -> None:
        failures = 0
        while not self._stop.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "server",
                *command,
                env=environ,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the children in order
                preexec_fn=_die_with_parent(os.getpid()),
            )
            code = await self._wait(process)
            if self._stop.is_set():
                return
            if code == EXIT_CONFIG:
                self._exit_code = EXIT_CONFIG
                self._stop.set()
                return
            failures = 0 if time.monotonic() - started > _STABLE_S else failures + 1
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)] if failures else _BACKOFF_S[0]
            self._logger.error("process ended, will be started again", name=name, code=code, pause_s=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _wait(self, process: Process) -> int:
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


def require_free(address: Address, *, patience_s: float = 5.0) -> None:
    """Raise `ListenError` if somebody listens there, another certmill too. Blocking.

    The workers of a supervisor that was just killed get `patience_s` to end.

    Workers share their port (SO_REUSEPORT), so they cannot notice: relying parties would be answered now by one
    CA's responder, now by the other's.
    """
    deadline = time.monotonic() + patience_s
    while (error := _bind_error(address)) is not None:
        if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
            raise ListenError(
                f"setting listen.public: cannot listen on {address}: {error.strerror or error}; stop what listens "
                "there, or choose another address"
            )
        time.sleep(0.1)


def _bind_error(address: Address) -> OSError | None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            return error
    return None


@contextlib.contextmanager
def _notify_socket(path: Path) -> Any:  # noqa: ANN401
    """Listen for READY=1 of the authority, as systemd would."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as receiver:
        receiver.bind(str(path))
        yield receiver
    path.unlink(missing_ok=True)


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Make what runs in the child before exec: it is told to end when the supervisor dies (prctl(2))."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
