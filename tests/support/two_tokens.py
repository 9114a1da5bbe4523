"""A pool over two tokens with the same keys, and callers who must not notice what happens to one of them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from signer_pool.lane_config import LaneConfig
from signer_pool.lane_link import open_lane
from signer_pool.pool import SignerPool
from tests.support.tokens import (
    PIN,
    BreakableToken,
    Journal,
    ReplicaToken,
    callers,
    until,
)
from tests.unit.signer_pool.lanes import MemoryLogger, sample

LANES_EACH = 2


class Scene:
    """A pool over the tokens `a` and `b`, and the journal of those who sign with it."""

    def __init__(self, a: BreakableToken, b: BreakableToken) -> None:
        self.a = a
        self.b = b
        self.registry = CollectorRegistry()
        self.logger = MemoryLogger()
        self.pool: SignerPool
        self.journal: Journal

    async def signed(self, more: int) -> None:
        """Wait until callers have got so many more signatures."""
        enough = self.journal.signed + more
        await until(lambda: self.journal.signed >= enough, lambda: self.pool.health().reasons())

    def lost(self, reason: str) -> float:
        """Count the lanes of token a that were lost for this reason."""
        return sample(self.registry, "certmill_signer_lane_restarts_total", token="a", reason=reason)

    async def loses(self, count: int, reason: str) -> None:
        await until(lambda: self.lost(reason) >= count, self.pool.health)

    def given_out(self, result: str) -> float:
        keys = ("ec", "rsa")
        return sum(
            sample(self.registry, "certmill_signer_signatures_total", key=key, result=result) for key in keys
        )

    def assert_nobody_noticed(self) -> None:
        self.journal.assert_all_signed()
        assert self.given_out("ok") == self.journal.signed


def two_tokens(directory: Path, original: ReplicaToken, *, pin_of_a: str = PIN) -> list[BreakableToken]:
    return [
        BreakableToken(directory / name, original, lanes=LANES_EACH, pin=pin)
        for name, pin in {"a": pin_of_a, "b": PIN}.items()
    ]


@asynccontextmanager
async def opened(
    a: BreakableToken, b: BreakableToken, *, lane_opener: Callable[[LaneConfig], object] = open_lane
) -> AsyncIterator[Scene]:
    """Open a pool; afterwards none of its processes is left."""
    scene = Scene(a, b)
    pids: set[int] = set()
    async with SignerPool(
        lanes=a.configs + b.configs,
        registry=scene.registry,
        logger=scene.logger,
        lane_opener=lane_opener,  # type: ignore[arg-type]  # a recording lane is a lane
    ) as pool:
        scene.pool = pool
        a.join(pool, first_lane=0)
        b.join(pool, first_lane=LANES_EACH)
        scene.journal = Journal(pool, a.original.public_keys)
        yield scene
        pids.update(a.pids, b.pids)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@asynccontextmanager
async def under_load(original: ReplicaToken, directory: Path) -> AsyncIterator[Scene]:
    """Two tokens that are up, and 240 callers, of whom at the end none has noticed a thing."""
    a, b = two_tokens(directory, original)
    async with opened(a, b) as scene:
        await a.comes_up()
        await b.comes_up()
        async with callers(scene.journal):
            await scene.signed(2000)
            yield scene
            await scene.signed(500)
        scene.assert_nobody_noticed()
