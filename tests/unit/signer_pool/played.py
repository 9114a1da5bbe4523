"""Lanes that the test plays, in virtual time, and pools over them."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from prometheus_client import CollectorRegistry

from pkix.algorithms import SIGNATURE_ALGORITHMS
from signer_pool.ckr import Action
from signer_pool.errors import PoolUnavailable
from signer_pool.lane import (
    Generate,
    Generated,
    Lane,
    Ping,
    Pong,
    Ready,
    Refusal,
    Relist,
    Reply,
    Signed,
    SignedCallback,
    TokenFacts,
)
from signer_pool.lane_config import LaneConfig, SoftwareLaneConfig
from signer_pool.pool import SignerPool
from tests.unit.signer_pool.lanes import MemoryLogger


def der(public_key: Any) -> bytes:
    return bytes(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = der(KEY.public_key())
OTHER_SPKI = der(ec.generate_private_key(ec.SECP256R1()).public_key())
KEYS: Mapping[str, bytes] = {"ec": SPKI, "of another kind": der(ed448.Ed448PrivateKey.generate().public_key())}
ALGORITHM = SIGNATURE_ALGORITHMS["ecdsa-with-SHA256"]

Answer = Callable[[Sequence[bytes]], Signed | None]
"""What a lane says to a batch; None: it dies."""


def now() -> float:
    """Return the loop's time, without the traces of adding up floats."""
    return round(asyncio.get_running_loop().time(), 4)


def sign(tbs: bytes) -> bytes:
    return KEY.sign(tbs, *ALGORITHM.scheme)


def signing(tbs: Sequence[bytes]) -> Signed:
    return Signed(0, [sign(one) for one in tbs], {}, 1.0)


def lying(tbs: Sequence[bytes]) -> Signed:
    """Sign all but the last TBS."""
    return Signed(0, [*map(sign, tbs[:-1]), b"wrong"], {}, 1.0)


def refusing(action: Action, code: int = 0x005, *, at: int = 0) -> Answer:
    """Refuse the TBS number `at`; what comes after it is not tried, unless the caller is to blame."""

    def answer(tbs: Sequence[bytes]) -> Signed:
        refusal = Refusal(action, code, f"refused: {action.value}")
        after = [sign(one) if action is Action.CALLER else b"" for one in tbs[at + 1 :]]
        return Signed(0, [*map(sign, tbs[:at]), b"", *after], {at: refusal}, 1.0)

    return answer


class PlayedLane:
    """A lane that says what the test wants, `service_s` after it has begun; with nothing left it signs."""

    pid = 1

    def __init__(
        self,
        answers: Sequence[Answer] = (),
        keys: Mapping[str, bytes] = KEYS,
        made: dict[str, bytes] | None = None,
        always: Answer = signing,
        token: str = "played",
    ) -> None:
        self.token = token
        self._always = always
        self._made = {} if made is None else made  # in the token, by whichever lane
        self.public_keys: Mapping[str, bytes] = {**keys, **self._made}
        self.facts = TokenFacts()
        self.notes: Sequence[str] = ()
        self.service_s = 1.0
        self.batches: list[tuple[float, list[bytes]]] = []
        self.algorithms: list[str] = []
        self.deadlines_s: list[float] = []
        self.pings: list[float] = []
        self.errors: dict[type[Generate | Relist | Ping], Exception] = {}
        self.killed: list[str] = []
        self.answering_s = 0.0
        self._answers = deque(answers)
        self._pipe: deque[SignedCallback] = deque()
        self._asked = 0
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._free_at = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._pipe) + self._asked

    @property
    def is_asked(self) -> bool:
        return self._asked > 0

    def send(
        self, key: str, algorithm: str, tbs: Sequence[bytes], done: SignedCallback, *, deadline_s: float
    ) -> None:
        assert key in self.public_keys
        loop = asyncio.get_running_loop()
        self.batches.append((now(), list(tbs)))
        self.algorithms.append(algorithm)
        self.deadlines_s.append(deadline_s)
        self._pipe.append(done)
        self._free_at = max(self._free_at, loop.time()) + self.service_s
        loop.call_at(self._free_at, self._answer, done, tbs)

    def _answer(self, done: SignedCallback, tbs: Sequence[bytes]) -> None:
        if self._pipe and self._pipe[0] is done:
            answer = self._answers.popleft() if self._answers else self._always
            reply = answer(tbs)
            if reply is None:
                self.kill("died")
            else:
                self.answer(reply)

    def answer(self, reply: Signed) -> None:
        """Answer the oldest batch now."""
        self._pipe.popleft()(reply)

    async def ask(self, request: Generate | Relist | Ping, *, deadline_s: float) -> Reply:
        assert deadline_s > 0
        self._asked += 1
        try:
            if isinstance(request, Ping):
                self.pings.append(now())
            await asyncio.sleep(self.answering_s)
        finally:
            self._asked -= 1
        if self._lost.done():
            raise PoolUnavailable("lost")
        if error := self.errors.get(type(request)):
            raise error
        if isinstance(request, Generate):
            self._made[request.label] = SPKI
            return Generated(SPKI)
        if isinstance(request, Relist):
            self.public_keys = {**self.public_keys, **self._made}
        return Pong() if isinstance(request, Ping) else Ready({}, "")

    def made_unheard(self, label: str) -> None:
        """Die, having made this key, before it could be told."""
        self._made[label] = SPKI
        self.kill("died")

    async def wait_lost(self) -> str:
        return await asyncio.shield(self._lost)

    def kill(self, reason: str) -> None:
        self.killed.append(reason)
        if not self._lost.done():
            self._lost.set_result(reason)
        asyncio.get_running_loop().call_soon(self._give_back)

    def _give_back(self) -> None:
        while self._pipe:
            self._pipe.pop()(None)

    async def close(self) -> None:
        self.kill("closed")


Act = Exception | Sequence[Answer] | None


class Stage:
    """Opens lanes with the answers that the test has prepared, or raises its errors; afterwards plain lanes.

    `acts` are for whoever comes, `by_token` for the lanes of one token. `opened`: when which token was opened.
    """

    def __init__(self, *acts: Act, **by_token: Sequence[Act]) -> None:
        self.acts = list(acts)
        self.opened: list[tuple[float, str]] = []
        self.lanes: list[PlayedLane] = []
        self.keys: dict[str, Mapping[str, bytes]] = {}
        self.opening_s: dict[str, float] = {}
        self.described: dict[str, str] = {}
        self._by_token = {name: list(acts) for name, acts in by_token.items()}
        self.always: Answer = signing
        self._names: list[str] = []
        self._made: dict[str, dict[str, bytes]] = {}

    def of(self, token: str) -> list[PlayedLane]:
        """Return the lanes of one token, in the order in which they were opened."""
        return [lane for name, lane in zip(self._names, self.lanes, strict=True) if name == token]

    async def __call__(self, config: LaneConfig) -> Lane:
        name = config.token_name
        self.opened.append((now(), name))
        await asyncio.sleep(self.opening_s.get(name, 0.0))
        acts = self._by_token.get(name, self.acts)
        act = acts.pop(0) if acts else None
        if isinstance(act, Exception):
            raise act
        made = self._made.setdefault(name, {})
        self.lanes.append(
            PlayedLane(act or (), self.keys.get(name, KEYS), made, self.always, self.described.get(name, name))
        )
        self._names.append(name)
        return cast("Lane", self.lanes[-1])


def token(name: str) -> SoftwareLaneConfig:
    """Configure a lane of the token of this name."""
    return SoftwareLaneConfig(directory=f"/{name}", passphrase="p", name=name)


ONE, TWO = token("one"), token("two")


class PlayedPool(SignerPool):
    """A pool over a stage; batches of two, whatever the pace, unless the test says otherwise."""

    def __init__(self, stage: Callable[..., object], *configs: LaneConfig, **changed: Any) -> None:
        self.registry = CollectorRegistry()
        self.log = MemoryLogger()
        settings = {"batch_size": 2, "batch_age_s": 0.25, "target_batch_s": 1000.0, **changed}
        super().__init__(
            lanes=configs or [ONE],
            registry=self.registry,
            logger=self.log,
            lane_opener=cast("Any", stage),
            **settings,
        )
