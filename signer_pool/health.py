"""What the pool says of itself: for /readyz, for people, for tests."""

from dataclasses import dataclass

from signer_pool.lane_keeper import LaneState
from signer_pool.token import TokenState


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneHealth:
    """One lane: `token` describes its token, `last_error` is the newest reason why the lane was not ready."""

    name: str
    token: str
    token_name: str
    state: LaneState
    pid: int | None
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHealth:
    """One token: `reason` says why it is not up; `missing_keys` are keys that other tokens have and it lacks."""

    name: str
    state: TokenState
    reason: str
    missing_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHealth:
    """The pool: it can sign while `alive` is not 0."""

    lanes: tuple[LaneHealth, ...]
    tokens: tuple[TokenHealth, ...]
    queue_depth: int

    @property
    def alive(self) -> int:
        """Count the lanes that are ready."""
        return sum(lane.state is LaneState.READY for lane in self.lanes)

    @property
    def total(self) -> int:
        """Count all lanes."""
        return len(self.lanes)

    def reasons(self) -> list[str]:
        """Say in lines what does not work: dead tokens, then lanes of others, then missing keys."""
        lines = [f"token {t.name} is {t.state.value}: {t.reason}" for t in self.tokens if t.reason]
        dead = {t.name for t in self.tokens if t.reason}
        lines += [
            f"{lane.name} of token {lane.token_name} is {lane.state.value}: {lane.last_error}"
            for lane in self.lanes
            if lane.state is not LaneState.READY and lane.last_error and lane.token_name not in dead
        ]
        lines += [
            f"token {t.name} lacks the keys {', '.join(t.missing_keys)}" for t in self.tokens if t.missing_keys
        ]
        return lines
