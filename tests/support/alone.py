"""Tests marked `alone` have the machine for themselves, however many workers pytest-xdist runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """A lock between workers: many tests at a time, or one alone.

    Who waits for its turn keeps those who come later out (`door`), so the workers with many short tests cannot keep
    one that wants to be alone waiting for ever. A worker that dies lets go of both.
    """

    def __init__(self, directory: Path) -> None:
        self._door = directory / "alone.door"
        self._room = directory / "alone.room"

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn and keep it for the block; blocks."""
        with self._room.open("w") as room:
            with self._door.open("w") as door:
                fcntl.flock(door, fcntl.LOCK_EX)
                fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
