"""Open a token once, read what it has and let keys sign a probe; token_verdict.py judges what was found."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pkix.algorithms import verify_signature
from pkix.errors import SignatureMismatch
from server.cli.token_source import Problem, ProblemKind, TokenSource
from signer_pool.calibration import PROBE
from signer_pool.ckr import Action, classify
from signer_pool.errors import LaneStartError
from signer_pool.key_ring import KeyRing
from signer_pool.lane import Lane, Refusal, Signed, TokenFacts
from signer_pool.lane_link import open_lane
from signer_pool.token import Token

START_DEADLINE_S = 30.0
_MECHANISM_CODES = {0x054, 0x070, 0x071}  # function not supported, mechanism invalid, its parameter invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a key signed the probe; a `problem` says that it did not."""

    algorithm: str
    service_s: float
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found in a token, or the `problem` why it could not be opened."""

    source: TokenSource
    problem: Problem | None = None
    describes_itself: str = ""
    facts: TokenFacts = field(default_factory=TokenFacts)
    public_keys: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()
    probes: Mapping[str, Probe] = field(default_factory=dict)


async def inspect(source: TokenSource, *, sign: Sequence[str] = (), deadline_s: float) -> Inspection:
    """Open a session, look, let the keys of `sign` that are there sign a probe, close it. One login at most."""
    if isinstance(source.lane, Problem):
        return Inspection(source=source, problem=source.lane)
    try:
        lane = await door(source).open(source.lane)
    except LaneStartError as error:
        return Inspection(source=source, problem=Problem.of(error))
    try:
        ring = KeyRing()
        ring.adopt(lane)
        return Inspection(
            source=source,
            describes_itself=lane.token,
            facts=lane.facts,
            public_keys=dict(lane.public_keys),
            notes=list(lane.notes),
            probes=await _probes(lane, ring, [name for name in sign if name in lane.public_keys], deadline_s),
        )
    finally:
        await lane.close()


def door(source: TokenSource) -> Token:
    """Return the door through which lanes of this token are opened: after a refused PIN it stays shut."""
    return Token(source.name, open_lane, start_deadline_s=START_DEADLINE_S, on_failed=lambda _name, _reason: None)


async def signed(
    lane: Lane, key: str, algorithm: str, tbs: Sequence[bytes], *, deadline_s: float
) -> Signed | None:
    """Sign a batch and wait for it; None when the lane was lost."""
    answer: asyncio.Future[Signed | None] = asyncio.get_running_loop().create_future()

    def done(reply: Signed | None) -> None:
        if not answer.done():
            answer.set_result(reply)

    lane.send(key, algorithm, tbs, done, deadline_s=deadline_s)
    return await answer


def judge_reply(
    reply: Signed | None, ring: KeyRing, key: str, tbs: Sequence[bytes], *, deadline_s: float
) -> Problem | None:
    """Say what is wrong with an answer: lost, refused, or a signature that does not verify."""
    if reply is None:
        text = f"no answer: its process died, or needed more than {deadline_s:g} s; look at the HSM and its log"
        return Problem(kind=ProblemKind.LANE, text=text)
    if reply.refusals:
        return _refused(next(iter(reply.refusals.values())))
    try:
        for item, signature in zip(tbs, reply.signatures, strict=True):
            verify_signature(ring.public_key(key), item, signature, ring.algorithm(key))
    except SignatureMismatch:
        text = (
            "its signature does not verify: the two halves on the token are of different keys, or the hardware is "
            "broken; do not use this token before that is known"
        )
        return Problem(kind=ProblemKind.SIGNATURE, text=text)
    return None


async def _probes(lane: Lane, ring: KeyRing, names: Sequence[str], deadline_s: float) -> dict[str, Probe]:
    """Let one key after the other sign the probe; when one costs us the session, the rest is not tried."""
    probes: dict[str, Probe] = {}
    ended_by = ""
    for name in names:
        algorithm = ring.algorithm(name).name
        if ended_by:
            text = f"not tried: the session ended when the key {ended_by!r} was used; mend that first"
            probes[name] = Probe(
                algorithm=algorithm, service_s=0.0, problem=Problem(kind=ProblemKind.LANE, text=text)
            )
            continue
        reply = await signed(lane, name, algorithm, [PROBE], deadline_s=deadline_s)
        probes[name] = Probe(
            algorithm=algorithm,
            service_s=0.0 if reply is None else reply.service_s,
            problem=judge_reply(reply, ring, name, [PROBE], deadline_s=deadline_s),
        )
        if reply is None or reply.spoils_lane:
            ended_by = name
    return probes


def _refused(refusal: Refusal) -> Problem:
    kind = ProblemKind.MECHANISM if refusal.code in _MECHANISM_CODES else ProblemKind.LANE
    kind = ProblemKind.PIN if refusal.action is Action.NEVER else kind
    why = f": {classify(refusal.code).reason}" if refusal.code else ""
    return Problem(kind=kind, text=f"does not sign: {refusal.message}{why} See the HSM's log.")
