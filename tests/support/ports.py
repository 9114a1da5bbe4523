"""TCP ports of loopback that no other test, worker or test run on this machine is given at the same time."""

import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

# Below what Linux gives to outgoing connections (net.ipv4.ip_local_port_range): nobody gets one of these by chance.
FIRST, LAST, BLOCK = 10_000, 32_000, 250


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, and that this process alone gives out; each again after all others."""
    return [next(port for port in _own_ports() if _is_free(port)) for _ in range(count)]


@cache
def _own_ports() -> Iterator[int]:
    """Go round and round through a block of ports, which is this process's until it ends."""
    directory = Path(tempfile.gettempdir()) / f"certmill-test-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    for first in range(FIRST, LAST, BLOCK):
        if (lock := _locked(directory / str(first))) is not None:
            _HELD.append(lock)
            return itertools.cycle(range(first, first + BLOCK))
    raise RuntimeError(f"every block of ports is taken: see {directory}")


_HELD: list[IO[str]] = []


def _locked(path: Path) -> IO[str] | None:
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
