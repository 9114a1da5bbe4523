"""A counter that writers bump and others read in 0.1 µs: eight octets of a shared, mapped file.

Workers keep finished answers only while it stands still, so they are never stale, not even for a moment.
"""

import fcntl
import mmap
import os
from pathlib import Path

_OCTETS = 8
_LAST = (1 << 64) - 1


class Generation:
    """The counter beside a store. `writable` creates the file; a reader needs it to exist."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        self._descriptor: int | None = descriptor if writable else None
        try:
            if writable and os.fstat(descriptor).st_size < _OCTETS:
                os.ftruncate(descriptor, _OCTETS)
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(descriptor, _OCTETS, access=access)
        except BaseException:
            os.close(descriptor)
            raise
        if not writable:
            os.close(descriptor)
        self._words = memoryview(self._map).cast("Q")

    def value(self) -> int:
        """Return the present number."""
        return self._words[0]

    def bump(self) -> None:
        """Change the number: what was read before may be out of date.

        Under a lock, so that of several writers' bumps none is lost: with it a change would stay unseen.
        """
        if self._descriptor is None:
            raise ValueError("a reader's generation")
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            self._words[0] = (self._words[0] + 1) & _LAST
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the mapping."""
        self._words.release()
        self._map.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
