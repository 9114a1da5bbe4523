"""Makes new keys: in the first token, once, and known to every lane afterwards.

Two tokens with two keys of one name would put one of them out of use for good. So nothing is made while a token
cannot be asked what it has, and what an earlier attempt made without living to tell is found before the next one.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import cast

from pkix.algorithms import KeyAlgorithm, SigningPublicKey
from signer_pool.errors import KeyExists, PoolUnavailable, SignerPoolError
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Generate, Generated, Relist
from signer_pool.lane_keeper import LaneKeeper, Logger
from signer_pool.token import Token

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_POLL_S = 0.05


class KeyMaker:
    """Belongs to one pool. `on_free` is told when a lane has a place again; `deadline_s` is for each question."""

    def __init__(
        self,
        *,
        keepers: Sequence[LaneKeeper],
        ring: KeyRing,
        on_free: Callable[[], None],
        deadline_s: float,
        logger: Logger,
    ) -> None:
        self._keepers = keepers
        self._ring = ring
        self._on_free = on_free
        self._deadline_s = deadline_s
        self._logger = logger
        self._one_at_a_time = asyncio.Lock()

    async def all_tokens_seen(self, *, deadline_s: float) -> None:
        """Wait until every token has a ready lane; raises `PoolUnavailable` naming those that have not in time."""
        try:
            async with asyncio.timeout(deadline_s):
                while missing := self._without_lane():  # noqa: ASYNC110 - the keepers announce nothing
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise PoolUnavailable(
                "; ".join(f"token {t.name} is {t.state.value}: {t.reason or 'no lane is ready'}" for t in missing)
            ) from None

    async def generate(self, label: str, algorithm: KeyAlgorithm) -> SigningPublicKey:
        """Make a key pair in the first token and show it to all lanes.

        All tokens must be there, and are asked again what they have. Raises `KeyExists`, `SigningFailed`,
        `PoolUnavailable` (it may exist nevertheless, which the next call finds out), ValueError for a name outside
        `[A-Za-z0-9 ._-]{1,64}`.
        """
        if not _LABEL.fullmatch(label):
            raise ValueError(f"key label {label!r}: 1 to 64 letters, digits, blanks or ._-")
        async with self._one_at_a_time:
            await self.all_tokens_seen(deadline_s=self._deadline_s)
            await self._relist()
            if label in self._ring.labels():
                raise KeyExists(f"key {label!r} exists already")
            first = self._keepers[0].token
            async with first.alone():
                lane = next((k.lane for k in self._keepers if k.token is first and k.lane is not None), None)
                if lane is None or self._without_lane():
                    raise PoolUnavailable("a token was lost before the key could be made")
                reply = await lane.ask(Generate(label, algorithm), deadline_s=self._deadline_s)
            self._ring.made(label, cast("Generated", reply).public_key)
            await self._relist()
        return self._ring.public_key(label)

    def _without_lane(self) -> list[Token]:
        ready = {keeper.token.name for keeper in self._keepers if keeper.lane is not None}
        return [t for t in dict.fromkeys(keeper.token for keeper in self._keepers) if t.name not in ready]

    async def _relist(self) -> None:
        """Let every ready lane look for keys again. One that is lost meanwhile looks when it is back."""
        for keeper in self._keepers:
            lane = keeper.lane
            if lane is None:
                continue
            try:
                await lane.ask(Relist(), deadline_s=self._deadline_s)
                keeper.keys = keeper.token.keys = self._ring.adopt(lane)
                self._on_free()
            except SignerPoolError as error:
                self._logger.error("lane cannot list its keys", lane=keeper.name, cause=str(error))
                keeper.dismiss(lane, "relist")
