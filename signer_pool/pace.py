"""How fast each lane signs with each key: what batches took in the token, as a mean that soon decays.

From it follow the size of a batch (as many signatures as fit into the target time, so that a network HSM of
5 ms per call and a local one of 0.05 ms both run full and neither makes urgent work wait long), the deadline of
a batch, and what a token can do per second.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from signer_pool.backlog import Kind

FIRST_SIZE = 8
_LEAST_WEIGHT_OF_NEW = 0.2
_LARGEST_STEP = 8.0
_SLOWEST_FACTOR = 50.0
_LEAST_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What all ready lanes of one token do per second with this key, if they do nothing else.

    0: they have the key, and it was never measured there.
    """

    token: str
    key: str
    signs_per_s: float


class Pace:
    """The pace of one lane."""

    def __init__(self, *, target_s: float, max_size: int, deadline_s: float) -> None:
        self._target_s = target_s
        self._max_size = max_size
        self._deadline_s = deadline_s
        self._seconds: dict[Kind, float] = {}
        self._signatures: dict[Kind, int] = {}  # that the average stands for; the first few are slow
        self._sizes: dict[Kind, int] = {}

    def measured(self, kind: Kind, count: int, service_s: float) -> None:
        """Take in one batch: `count` signatures took `service_s` in the token."""
        seconds = max(service_s / count, 1e-7)
        known = self._seconds.get(kind)
        if known is not None:
            before = self._signatures[kind]
            weight = max(_LEAST_WEIGHT_OF_NEW, count / (count + before))
            # One hiccup must not look like a slow token; a slow one is known for it within some batches.
            seconds = known + weight * (min(seconds, _LARGEST_STEP * known) - known)
            count += before
        self._seconds[kind] = seconds
        self._signatures[kind] = count
        self._sizes[kind] = max(1, min(self._max_size, round(self._target_s / seconds)))

    def forget(self, kind: Kind) -> None:
        """Begin anew, with half the size: a lane was lost over a batch, perhaps because it is merely slow."""
        self._sizes[kind] = max(1, self.size(kind) // 2)
        self._seconds.pop(kind, None)

    def knows(self, kind: Kind) -> bool:
        """Tell whether anything was measured."""
        return kind in self._seconds

    def size(self, kind: Kind) -> int:
        """Return how many signatures make a batch."""
        return self._sizes.get(kind, min(FIRST_SIZE, self._max_size))

    def deadline_s(self, kind: Kind, count: int) -> float:
        """Return how long a batch may take: far more than it ever did, and no more than the configured bound."""
        seconds = self._seconds.get(kind)
        if seconds is None:
            return self._deadline_s
        return min(self._deadline_s, max(_LEAST_DEADLINE_S, _SLOWEST_FACTOR * seconds * count))

    def signs_per_s(self) -> dict[str, float]:
        """Return the measured rate for each key; of a key's algorithms the slowest."""
        slowest: dict[str, float] = {}
        for (key, _), seconds in self._seconds.items():
            slowest[key] = max(seconds, slowest.get(key, 0.0))
        return {key: 1 / seconds for key, seconds in slowest.items()}


def capacities(lanes: Iterable[tuple[str, frozenset[str], Pace]]) -> list[Capacity]:
    """Add up token, keys and pace of all ready lanes."""
    total: dict[tuple[str, str], float] = {}
    for token, keys, pace in lanes:
        rates = pace.signs_per_s()
        for key in keys:
            total[token, key] = total.get((token, key), 0.0) + rates.get(key, 0.0)
    return [Capacity(token=token, key=key, signs_per_s=rate) for (token, key), rate in total.items()]
