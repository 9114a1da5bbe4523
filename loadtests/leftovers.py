"""What a run may leave behind, or grow by: processes, descriptors, threads, tasks, futures, memory."""

import asyncio
import gc
import os
import resource
import statistics
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PARENT_MAY_GROW = 0.05
LANES_MAY_GROW = 0.10
MAY_GROW_BYTES = 8 * 2**20
_FEWEST_LOOKS = 2
_PAGE_BYTES = resource.getpagesize()


@dataclass(frozen=True, kw_only=True)
class Belongings:
    """What a process has that it can leave behind."""

    children: set[int]
    descriptors: set[str]
    threads: set[int | None]
    tasks: set[asyncio.Task[object]]
    futures: int

    @classmethod
    def now(cls) -> "Belongings":
        """Look at this process."""
        gc.collect()
        lists = Path("/proc/self/task").glob("*/children")
        return cls(
            children={int(pid) for each in lists for pid in each.read_text().split()},
            descriptors={path.name for path in Path("/proc/self/fd").iterdir() if path.exists()},
            threads={thread.ident for thread in threading.enumerate()},
            tasks=set(asyncio.all_tasks()),
            futures=sum(isinstance(each, asyncio.Future) and not each.done() for each in gc.get_objects()),
        )


class Memory:
    """Resident memory of the parent and of its lanes, in each third of the run."""

    def __init__(self) -> None:
        self._parent: list[list[int]] = [[], [], []]
        self._lanes: list[list[int]] = [[], [], []]

    def look(self, share: float, lanes: list[int]) -> None:
        """Measure, when this share of the run is over."""
        third = min(2, int(3 * share))
        self._parent[third].append(_resident_bytes(os.getpid()))
        self._lanes[third] += filter(None, map(_resident_bytes, lanes))

    def judge(self, figures: dict[str, float]) -> Iterator[str]:
        """Compare the last third with the second: what the largest tenth has at least."""
        for name, seen, may_grow in (
            ("parent", self._parent, PARENT_MAY_GROW),
            ("lane", self._lanes, LANES_MAY_GROW),
        ):
            if min(len(seen[1]), len(seen[2])) < _FEWEST_LOOKS:
                continue  # a run of seconds on a busy machine: nothing to compare
            middle, last = (statistics.quantiles(seen[third], n=10)[-1] for third in (1, 2))
            figures[f"{name} MiB, second third"] = middle / 2**20
            figures[f"{name} MiB, last third"] = last / 2**20
            if last > middle * (1 + may_grow) + MAY_GROW_BYTES:
                yield f"the memory of a {name} grew from {middle / 2**20:.1f} to {last / 2**20:.1f} MiB"


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0  # it has just ended
