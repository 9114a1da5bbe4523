"""Every return value of PKCS #11, at every place where a token can give it, by real tokens under load.

Several tokens break at a time, each by a value of its own; in the pool with them is one that is well (`beside`), or
each is alone in a pool of its own. What the pool makes of it:

- beside a token that is well no caller notices, but for the values that say "this cannot be signed";
- alone, a token that broke once is healed before the callers' deadlines;
- afterwards each token is up and signs; but one whose PIN was refused has failed and is never logged in again;
- a process logs in once at most. What the session is merely said to be is healed in it; where its only session is
  really gone the login is gone too (PKCS #11 §5.6), and a new process logs in.

Every value at every place costs 1500 starts of a process, so one run takes two places together where it can: what a
lane is answered when it replaces a lost session, its new process is answered again. Alone, the places before the
first signature differ by what is done about the value: there one value stands for all with the same action.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from signer_pool import lane_link
from signer_pool.ckr import TABLE, Action, Ckr
from signer_pool.errors import PoolUnavailable, SignerPoolError, Unsignable
from signer_pool.lane_keeper import LaneState
from signer_pool.pool import SignerPool
from signer_pool.token import TokenState
from tests.support.faulty_module import Faults
from tests.support.tokens import BreakableToken, Journal, ReplicaToken, until
from tests.support.warm_lanes import WarmLanes, warm_lanes
from tests.unit.signer_pool.lanes import MemoryLogger, sample

pytestmark = pytest.mark.usefixtures("warm")

AT_A_TIME = 10
BATCH = 8
DEADLINE_S = 10.0
HOPELESS_DEADLINE_S = 0.5

REOPENED = [row for row in TABLE.values() if row.action is Action.REOPEN]
FINAL = [row for row in TABLE.values() if row.action is Action.NEVER]
HEALING = [row for row in TABLE.values() if row.action is not Action.NEVER]
# One value for each action; and a lane that believes that it is logged in must not come up without its keys.
ONE_OF_EACH = [*{row.action: row for row in HEALING}.values(), TABLE[0x100]]
# The cause lies in what is signed, or somebody said no: these end a call, and no other token is asked.
ABOUT_THE_ITEM = {"CKR_DATA_INVALID", "CKR_DATA_LEN_RANGE", "CKR_FUNCTION_REJECTED", "CKR_KEY_EXHAUSTED"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a token gives its value: in the `nth` call of the function and the `times` - 1 after it.

    `reopening`: while the lane replaces a session that it lost; `starting`: in a new process, the old one is
    killed. `ends_session`: the session is really gone, and says so by the value.
    """

    function: str
    nth: int = 1
    times: int = 1
    reopening: bool = False
    starting: bool = False
    ends_session: bool = False

    def arm(self, faults: Faults, code: int) -> None:
        faults.arm(self.function, nth=self.nth, times=self.times, rv=code, invalidate=self.ends_session)
        if self.reopening:
            faults.arm("C_Sign", invalidate=True)


SIGNING = {
    "first sign": Place(function="C_Sign"),
    "sign amid a batch": Place(function="C_Sign", nth=4),
}
SESSION_ENDED = {
    "first sign, session gone": Place(function="C_Sign", ends_session=True),
    "sign amid a batch, session gone": Place(function="C_Sign", nth=4, ends_session=True),
}
OPENING = {"open": "C_OpenSession", "login": "C_Login", "find": "C_FindObjects"}
SESSION_LOST = {f"{name}, session lost": Place(function=f, reopening=True) for name, f in OPENING.items()}
NEW_PROCESS = {f"{name}, new process": Place(function=f, starting=True) for name, f in OPENING.items()}
BOTH = {
    f"{name}, session lost, new process": Place(function=f, reopening=True, times=2) for name, f in OPENING.items()
}


@pytest.fixture(scope="module")
def forking() -> Iterator[socket.socket]:
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        with warm_lanes() as connection:
            yield connection


@pytest.fixture
async def warm(forking: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start lanes quickly, and without measuring their coverage: others reach their lines."""
    monkeypatch.setattr(lane_link, "_spawn", WarmLanes(forking).spawn)


class Broken:
    """Breakable tokens and the journals of their pools."""

    def __init__(self, tokens: list[BreakableToken], journals: list[Journal], registry: CollectorRegistry) -> None:
        self.tokens = tokens
        self.journals = journals
        self._registry = registry
        self._unsigned = 0

    async def sign(self, deadline_s: float = DEADLINE_S) -> list[SignerPoolError]:
        """Let many callers sign at once, two batches for each lane; return what they were told."""
        lanes = len(self.tokens) // len(self.journals) + 1
        async with asyncio.timeout(deadline_s + 5), asyncio.TaskGroup() as callers:
            for journal in self.journals:
                for number in range(lanes * BATCH):
                    callers.create_task(journal.call("ec", count=1 + number % 3, deadline_s=deadline_s))
        errors: list[SignerPoolError] = []
        for journal in self.journals:
            errors += journal.take_errors()
        return errors

    def assert_nothing_signed_twice(self) -> None:
        """Fail if signatures were given out that no caller got; in calls that failed as a whole, some were."""
        given_out = sample(self._registry, "certmill_signer_signatures_total", key="ec", result="ok")
        signed = sum(journal.signed for journal in self.journals)
        unsigned = sum(journal.asked for journal in self.journals) - signed
        assert signed <= given_out <= signed + unsigned


@asynccontextmanager
async def broken_tokens(
    original: ReplicaToken, directory: Path, *, beside: bool, count: int = AT_A_TIME
) -> AsyncIterator[Broken]:
    tokens = [BreakableToken(directory / f"broken-{number}", original) for number in range(count)]
    journals: list[Journal] = []
    async with AsyncExitStack() as stack:
        for share in [tokens] if beside else [[token] for token in tokens]:
            registry = CollectorRegistry()
            lanes = [*chain.from_iterable(token.configs for token in share), *[original.config("well")] * beside]
            pool = SignerPool(lanes=lanes, registry=registry, logger=MemoryLogger(), batch_size=BATCH)
            await stack.enter_async_context(pool)
            await pool.all_tokens_seen(deadline_s=DEADLINE_S)
            for number, token in enumerate(share):
                token.join(pool, first_lane=number)
            journals.append(Journal(pool, original.public_keys))
        yield Broken(tokens, journals, registry)


def has_given(token: BreakableToken, place: Place, hits: int) -> bool:
    return token.faults.hits(place.function) >= hits


def is_in(token: BreakableToken, lane: LaneState, state: TokenState) -> bool:
    return token.states == [lane] and token.health.state is state


async def break_each(
    broken: Broken, place: Place, rows: Sequence[Ckr], deadline_s: float = DEADLINE_S
) -> list[SignerPoolError]:
    """Let each token give its value while callers sign; return what these were told."""
    due = []
    for token, row in zip(broken.tokens, rows, strict=False):
        token.faults.clear()
        due.append(token.faults.hits(place.function) + place.times)
        place.arm(token.faults, row.code)
        if place.starting:
            token.kill_lanes()
    errors = await broken.sign(deadline_s)
    for token, row, hits in zip(broken.tokens, rows, due, strict=False):
        await until(partial(has_given, token, place, hits), row.name)
    return errors


async def break_and_heal(broken: Broken, place: Place, rows: Sequence[Ckr]) -> None:
    """Break tokens, one for each row; see that only items failed that cannot be signed, and that all tokens heal."""
    before = [token.pids for token in broken.tokens]
    logins = [token.faults.calls("C_Login") for token in broken.tokens]
    starts = [token.faults.calls("C_Initialize") for token in broken.tokens]
    errors = await break_each(broken, place, rows)
    is_signing = place.function == "C_Sign"
    unsignable = sorted(row.name for row in rows if is_signing and row.name in ABOUT_THE_ITEM)
    assert sorted(str(error).rpartition(" ")[2] for error in errors) == unsignable, errors[:5]
    assert {type(error) for error in errors} <= {Unsignable}
    for token, row, pids in zip(broken.tokens, rows, before, strict=False):
        await until(partial(is_in, token, LaneState.READY, TokenState.UP), row.name)
        heals_in_lane = row.action in {Action.RETRY, Action.REOPEN} or row.name in ABOUT_THE_ITEM
        if is_signing:
            assert (token.pids == pids) is (heals_in_lane and not place.ends_session), row.name
    signs = [token.faults.calls("C_Sign") for token in broken.tokens]
    assert await broken.sign() == []
    idle = [t.name for t, count in zip(broken.tokens, signs, strict=True) if t.faults.calls("C_Sign") == count]
    assert not idle, f"up, but signs nothing, after {[row.name for row in rows]}"
    for token, row, pids, login, start in zip(broken.tokens, rows, before, logins, starts, strict=False):
        given, started = token.faults.calls("C_Login") - login, token.faults.calls("C_Initialize") - start
        assert given <= started, f"{row.name}: {given} logins of {started} processes"
        if is_signing:
            assert given == (token.pids != pids), row.name


@pytest.mark.parametrize("place", SIGNING | BOTH)
async def test_nobody_notices_a_broken_token_beside_another(
    original: ReplicaToken, tmp_path: Path, place: str
) -> None:
    async with broken_tokens(original, tmp_path, beside=True) as broken:
        for first in range(0, len(HEALING), AT_A_TIME):
            await break_and_heal(broken, (SIGNING | BOTH)[place], HEALING[first : first + AT_A_TIME])
        broken.assert_nothing_signed_twice()


@pytest.mark.parametrize("place", SIGNING)
async def test_lone_token_that_refuses_a_signature_is_healed_in_time(
    original: ReplicaToken, tmp_path: Path, place: str
) -> None:
    async with broken_tokens(original, tmp_path, beside=False) as broken:
        for first in range(0, len(HEALING), AT_A_TIME):
            await break_and_heal(broken, SIGNING[place], HEALING[first : first + AT_A_TIME])


@pytest.mark.parametrize("place", SESSION_ENDED)
@pytest.mark.parametrize("beside", [True, False])
async def test_lane_whose_only_session_is_gone_is_replaced(
    original: ReplicaToken, tmp_path: Path, place: str, beside: bool
) -> None:
    async with broken_tokens(original, tmp_path, beside=beside, count=len(REOPENED)) as broken:
        await break_and_heal(broken, SESSION_ENDED[place], REOPENED)
        if beside:
            broken.assert_nothing_signed_twice()


async def test_lone_token_that_does_not_open_is_healed_in_time(original: ReplicaToken, tmp_path: Path) -> None:
    async with broken_tokens(original, tmp_path, beside=False, count=len(ONE_OF_EACH)) as broken:
        for place in (SESSION_LOST | NEW_PROCESS).values():
            await break_and_heal(broken, place, ONE_OF_EACH)


@pytest.mark.parametrize("place", SIGNING | SESSION_LOST | NEW_PROCESS)
async def test_refused_pin_is_never_tried_again(original: ReplicaToken, tmp_path: Path, place: str) -> None:
    where = (SIGNING | SESSION_LOST | NEW_PROCESS)[place]
    async with broken_tokens(original, tmp_path, beside=True, count=len(FINAL)) as broken:
        logins = [token.faults.calls("C_Login") for token in broken.tokens]
        assert await break_each(broken, where, FINAL) == []
        for token, row in zip(broken.tokens, FINAL, strict=True):
            await until(partial(is_in, token, LaneState.FAILED, TokenState.FAILED), row.name)
            assert row.name in token.health.reason
        assert await broken.sign() == []
        broken.assert_nothing_signed_twice()
        # It was given once more if the login was refused, or what comes after it in the new process.
        given = int(where.function == "C_Login" or (where.function == "C_FindObjects" and where.starting))
        for token, row, before in zip(broken.tokens, FINAL, logins, strict=True):
            assert token.faults.calls("C_Login") - before == given, row.name


async def test_lone_token_whose_pin_was_refused_fails_calls_at_their_deadlines(
    original: ReplicaToken, tmp_path: Path
) -> None:
    async with broken_tokens(original, tmp_path, beside=False, count=len(FINAL)) as broken:
        errors = await break_each(broken, SESSION_LOST["login, session lost"], FINAL, HOPELESS_DEADLINE_S)
        assert {type(error) for error in errors} == {PoolUnavailable}
        logins = [token.faults.calls("C_Login") for token in broken.tokens]
        for token, row in zip(broken.tokens, FINAL, strict=True):
            await until(partial(is_in, token, LaneState.FAILED, TokenState.FAILED), row.name)
        assert len(await broken.sign(HOPELESS_DEADLINE_S)) == 2 * BATCH * len(FINAL)
        assert [token.faults.calls("C_Login") for token in broken.tokens] == logins
