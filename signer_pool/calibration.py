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
    keepers: Iterable[LaneKeeper],
    ring: KeyRing,
    keys: Sequence[str],
    *,
    signs: int,
    judge: Judge,
    schedule: Callable[[], None],
) -> None:
    """Let each ready lane sign `signs` probes with each of these keys that it has; returns when all are done.

    `judge` does to lane and token what refusals ask for, as after any other batch; `schedule` is called when a
    lane has a place again for the work that came meanwhile.
    """
    waits = []
    loop = asyncio.get_running_loop()
    for keeper in keepers:
        for key in keys:
            lane = keeper.lane
            if lane is None or key not in keeper.keys:
                continue
            algorithm = ring.algorithm(key)
            done: asyncio.Future[None] = loop.create_future()
            waits.append(done)
            lane.send(
                key,
                algorithm.name,
                [PROBE] * signs,
                partial(
                    _on_reply,
                    keeper=keeper,
                    lane=lane,
                    ring=ring,
                    key=key,
                    judge=judge,
                    schedule=schedule,
                    done=done,
                ),
                deadline_s=keeper.pace.deadline_s((key, algorithm.name), signs),
            )
    for done in waits:
        await done


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
