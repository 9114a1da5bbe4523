"""Whose processor time it was (Linux): what other programs took while a benchmark ran says how far to trust it."""

import os
import time
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7


class Others:
    """Watches what everybody but this process and its children takes."""

    def __init__(self) -> None:
        self._start_s, self._others_s = time.perf_counter(), _others_s()

    def cores(self) -> float:
        """Return how many cores they have kept busy since this object was made, on average."""
        return max(0.0, _others_s() - self._others_s) / (time.perf_counter() - self._start_s)


def _others_s() -> float:
    return _machine_s() - _own_s()


def _machine_s() -> float:
    """Return the processor seconds since boot that were not idle; those that a hypervisor took count, too."""
    ticks = [int(field) for field in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]]
    return (sum(ticks[: _STEAL + 1]) - ticks[_IDLE] - ticks[_IOWAIT]) * _TICK_S


def _own_s() -> float:
    """Return what this process has taken, its children, and those that it has reaped."""
    children = [
        int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()
    ]
    return sum(_process_s(pid) for pid in [os.getpid(), *children])


def _process_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:  # just gone; the next look finds it among the reaped
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK_S
