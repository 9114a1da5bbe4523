"""Lanes' processes without the wait for Python: forks of a process that has imported all that a lane needs.

For tests that start processes by the hundred. What is forked is a real lane: a process, a session and a login of its
own, a module that is loaded after the fork; only `exec` and the imports, two thirds of a start, are done beforehand.
Starts as in production are for the other tests.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from signer_pool import lane_process
from signer_pool.lane_config import LaneConfig

_MESSAGE_BYTES = 2**16


class WarmLanes:
    """Starts lanes in the place of `signer_pool.lane_link._spawn`; of one event loop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._one_at_a_time = asyncio.Lock()

    async def spawn(self, theirs: socket.socket, config: LaneConfig) -> "Child":
        """Fork a lane that serves `theirs`."""
        loop = asyncio.get_running_loop()
        async with self._one_at_a_time:
            socket.send_fds(self._connection, [msgspec.json.encode(config.env)], [theirs.fileno()])
            pid = int(await loop.sock_recv(self._connection, _MESSAGE_BYTES))
        return Child(pid, loop)


class Child:
    """A forked lane, with what `LaneLink` needs of an `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, loop: asyncio.AbstractEventLoop) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._loop = loop
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end()
        else:
            loop.add_reader(self._pidfd, self._reaped)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        await self._ended.wait()
        return 0

    def _reaped(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._end()

    def _end(self) -> None:
        self.returncode = 0  # nobody asks which
        self._ended.set()


@contextmanager
def warm_lanes() -> Iterator[socket.socket]:
    """Run the process that forks; yields the connection to it, for `WarmLanes`. It ends with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.warm_lanes", str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, pass_fds=[theirs.fileno()]) as process,
    ):
        theirs.close()
        ours.setblocking(False)
        try:
            yield ours
        finally:
            ours.close()
            process.wait(10)


def _main(descriptor: int) -> None:
    from signer_pool import pkcs11_session, software  # noqa: F401 - imported for the forks

    signal.signal(signal.SIGCHLD, _reap)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 1)
            if not message:
                return
            if (pid := os.fork()) == 0:
                connection.close()
                _become_a_lane(msgspec.json.decode(message, type=dict[str, str]), descriptors[0])
            os.close(descriptors[0])
            connection.send(str(pid).encode())


def _reap(*_: object) -> None:
    """Reap whoever has ended; so what the lanes cost is counted as the tests' too."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _become_a_lane(env: dict[str, str], descriptor: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.environ.update(env)
        code = lane_process.main([str(descriptor)])
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
