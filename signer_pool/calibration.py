"""A short measurement on demand: every ready lane signs a few probes, so that its pace is known before it matters.

A probe is no DER and begins with a letter: whatever somebody does with its signature, it is none of a certificate,
CRL or OCSP response.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from pkix.algorithms import verify_signature
from pkix.errors import SignatureMismatch
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane, Refusal, Signed
from signer_pool.lane_keeper import WRONG_SIGNATURE, LaneKeeper

PROBE = b"certmill calibration probe: not a certificate, not a CRL, not an OCSP response"


Judge = Callable[[LaneKeeper, Lane, Mapping[int, Refusal]], None]


async def calibrate(
    keepers: Sequence[LaneKeeper],
    ring: KeyRing,
    keys: Sequence[str],
    *,
    signs: int,
    judge: Judge,
    schedule: Callable[[], None],
) -> None:
    """Let each ready lane sign up to `signs` probes with each of these keys; returns when all are done.

    Where nothing was measured yet it begins with one, and how many follow is for its pace to say: a slow token
    must not lose a lane over being measured. `judge` does to lane and token what refusals ask for, as after any
    other batch; `schedule` is called when a lane has a place again for the work that came meanwhile.
    """
    pairs = [(keeper, key) for keeper in keepers for key in keys]
    on_reply = partial(_on_reply, ring=ring, judge=judge, schedule=schedule)
    await _all(_probe(keeper, ring, key, 1, on_reply) for keeper, key in pairs if not _is_known(keeper, ring, key))
    await _all(_probe(keeper, ring, key, signs, on_reply) for keeper, key in pairs)


def _is_known(keeper: LaneKeeper, ring: KeyRing, key: str) -> bool:
    return key in keeper.keys and keeper.pace.knows((key, ring.algorithm(key).name))


async def _all(probes: Iterable["asyncio.Future[None] | None"]) -> None:
    """Wait for probes that are all sent before the first one is waited for."""
    for done in [probe for probe in probes if probe is not None]:
        await done


def _probe(
    keeper: LaneKeeper, ring: KeyRing, key: str, signs: int, on_reply: Callable[..., None]
) -> "asyncio.Future[None] | None":
    """Send probes with one key to one lane; None where there is nothing to send."""
    lane = keeper.lane
    if lane is None or key not in keeper.keys:
        return None
    algorithm = ring.algorithm(key)
    kind = (key, algorithm.name)
    count = min(signs, keeper.pace.size(kind))
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lane.send(
        key,
        algorithm.name,
        [PROBE] * count,
        partial(on_reply, keeper=keeper, lane=lane, key=key, done=done),
        deadline_s=keeper.pace.deadline_s(kind, count),
    )
    return done


def _on_reply(
    reply: Signed | None,
    *,
    keeper: LaneKeeper,
    lane: Lane,
    ring: KeyRing,
    key: str,
    judge: Judge,
    schedule: Callable[[], None],
    done: asyncio.Future[None],
) -> None:
    if not done.done():
        done.set_result(None)
    schedule()
    if reply is None:
        return
    if reply.refusals:
        judge(keeper, lane, reply.refusals)
        return
    try:
        for signature in reply.signatures:
            verify_signature(ring.public_key(key), PROBE, signature)
    except SignatureMismatch:
        keeper.dismiss(lane, WRONG_SIGNATURE)
        return
    keeper.pace.measured((key, ring.algorithm(key).name), len(reply.signatures), reply.service_s)
