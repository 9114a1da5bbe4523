"""The lane contract: what a lane is told, the frames between parent and child, and both ends' protocols.

A lane is one child process that owns one session of one token. Parent and child exchange frames over a
socket pair: four bytes of length, big-endian, then one msgpack message. The child answers in the order of
the requests, one answer for each:

    Open -> Ready | Failed          the first frame, and the only one that carries a PIN
    Sign -> Signed                  up to two of them wait in the pipe, so that the token never idles
    Generate -> Generated | Failed
    Relist -> Ready | Failed        another lane made a key
    Ping -> Pong | Failed           nothing was asked for long: an idle session must not be closed by the HSM
"""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import BinaryIO, Protocol

import msgspec

from pkix.algorithms import KeyAlgorithm
from signer_pool.ckr import Action
from signer_pool.errors import SignerPoolError
from signer_pool.lane_config import LaneConfig

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH_BYTES = 4


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of the frames."""


class Open(Frame, frozen=True, tag="open"):
    """Open the token and log in."""

    config: LaneConfig


class Sign(Frame, frozen=True, tag="sign"):
    """Sign every TBS with the key of this name; `algorithm` names a row of `SIGNATURE_ALGORITHMS`."""

    batch_id: int
    key: str
    algorithm: str
    tbs: Sequence[bytes]


class Generate(Frame, frozen=True, tag="generate"):
    """Make a key pair that never leaves the token."""

    label: str
    algorithm: KeyAlgorithm


class Relist(Frame, frozen=True, tag="relist"):
    """Look for keys again."""


class Ping(Frame, frozen=True, tag="ping"):
    """Use the session, so that it does not idle."""


class TokenFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says of itself. `mechanisms`: names of those that we can sign with."""

    label: str = ""
    manufacturer: str = ""
    model: str = ""
    serial: str = ""
    hardware: str = ""
    firmware: str = ""
    slot_id: int = 0
    mechanisms: tuple[str, ...] = ()


class Ready(Frame, frozen=True, tag="ready"):
    """The token is open. `public_keys`: name to SubjectPublicKeyInfo DER of every usable key.

    `notes`: lines for the operator about keys that cannot be used, and why.
    """

    public_keys: dict[str, bytes]
    token: str
    facts: TokenFacts = TokenFacts()
    notes: list[str] = []


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """Why there is no signature: what to do about it, the CKR behind it (0: none), a line for the operator."""

    action: Action
    code: int
    message: str


class Signed(Frame, frozen=True, tag="signed"):
    """A signature for each TBS, in order; empty where there is none: refused (by index), or not tried.

    `service_s`: seconds spent in the token. `healed`: CKR codes that the lane dealt with by itself, counted.
    """

    batch_id: int
    signatures: list[bytes]
    refusals: dict[int, Refusal]
    service_s: float
    healed: dict[int, int] = {}

    @property
    def spoils_lane(self) -> bool:
        """Tell whether the lane must not be used any more."""
        return any(refusal.action is not Action.CALLER for refusal in self.refusals.values())


class Pong(Frame, frozen=True, tag="pong"):
    """The session lives."""


class Generated(Frame, frozen=True, tag="generated"):
    """The new key's SubjectPublicKeyInfo DER."""

    public_key: bytes


class FailureKind(enum.StrEnum):
    """Which error a `Failed` frame stands for."""

    START = "start"
    PIN = "pin"
    KEY_EXISTS = "key-exists"
    SIGNING = "signing"


class Failed(Frame, frozen=True, tag="failed"):
    """The request could not be done; `message` is one line for the operator, `code` the CKR behind it or 0."""

    kind: FailureKind
    message: str
    code: int = 0


Request = Open | Sign | Generate | Relist | Ping
Reply = Ready | Signed | Generated | Pong | Failed

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class FrameError(SignerPoolError):
    """The bytes are no frame: the other end has gone mad, and is to be left."""


def encode_frame(frame: Request | Reply) -> bytes:
    """Return the frame with its length in front."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def read_request(stream: BinaryIO) -> Request | None:
    """Block for the next request; None when the parent has gone. Raises `FrameError`."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = _frame_length(head)
    body = stream.read(length)
    if len(body) < length:
        return None
    try:
        return _request_decoder.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError("not a request") from error


class ReplyReader:
    """Cut a stream of bytes, in whatever pieces it comes, into replies."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that `data` completes; raises `FrameError`."""
        buffer = self._buffer
        buffer += data
        replies: list[Reply] = []
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            end = start + _LENGTH_BYTES + _frame_length(buffer[start : start + _LENGTH_BYTES])
            if len(buffer) < end:
                break
            try:
                replies.append(_reply_decoder.decode(bytes(buffer[start + _LENGTH_BYTES : end])))
            except msgspec.DecodeError as error:
                raise FrameError("not a reply") from error
            start = end
        del buffer[:start]
        return replies


def _frame_length(head: bytes | bytearray) -> int:
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes")
    return length


class SigningSession(Protocol):
    """What a batch needs of a session."""

    @property
    def token(self) -> str:
        """Describe the token, for people."""
        ...

    def signer(self, name: str, algorithm: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature (ECDSA: DER Ecdsa-Sig-Value).

        Raises `TokenRefused`, and so does the function.
        """
        ...

    def reopen(self) -> None:
        """Replace the session by a new one and find the keys again; raises `LaneStartError`."""
        ...


class KeySession(SigningSession, Protocol):
    """The child's side: one open session of a token. Blocking; one thread."""

    def public_keys(self) -> dict[str, bytes]:
        """Look for keys: name to SubjectPublicKeyInfo DER. Raises `LaneStartError`."""
        ...

    def facts(self) -> TokenFacts:
        """Return what the token says of itself."""
        ...

    def notes(self) -> list[str]:
        """Return lines for the operator about keys that `public_keys` found unusable."""
        ...

    def touch(self) -> None:
        """Use the session a little; raises `TokenRefused`."""
        ...

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key pair and return its SubjectPublicKeyInfo DER; raises `KeyExists`, `SigningFailed`."""
        ...


SignedCallback = Callable[[Signed | None], None]
"""Called once for each batch sent: with the answer, or None when the lane was lost before it came."""


class Lane(Protocol):
    """The parent's side: a ready lane. Its methods never block; all of it belongs to one event loop."""

    public_keys: Mapping[str, bytes]
    facts: TokenFacts
    notes: Sequence[str]

    @property
    def token(self) -> str:
        """Describe the token, for people."""
        ...

    @property
    def pid(self) -> int:
        """Return the child's process id."""
        ...

    @property
    def in_flight(self) -> int:
        """Count the requests that are not answered yet."""
        ...

    @property
    def is_asked(self) -> bool:
        """Tell whether a question (`ask`) is among them: no batch should wait behind one that may hang."""
        ...

    def send(
        self, key: str, algorithm: str, tbs: Sequence[bytes], done: SignedCallback, *, deadline_s: float
    ) -> None:
        """Send a batch; `done` is called exactly once, never from inside this call.

        The lane is killed if the answer takes longer than `deadline_s` from the moment the child can begin.
        """
        ...

    async def ask(self, request: Generate | Relist | Ping, *, deadline_s: float) -> Reply:
        """Send another request and wait; raises `PoolUnavailable` if the lane is lost."""
        ...

    async def wait_lost(self) -> str:
        """Wait until the lane is lost and return the reason: one word, fit for a metric's label."""
        ...

    def kill(self, reason: str) -> None:
        """Be done with the lane at once; every batch in flight is given back by its callback.

        The child ends at EOF, and is killed if it has not by the end of `close`.
        """
        ...

    async def close(self) -> None:
        """End the child and reap it; idempotent."""
        ...


LaneOpener = Callable[[LaneConfig], Awaitable[Lane]]
"""Start a lane of this configuration; it must become ready.

Raises `LaneStartError`, `PinRejected`. When cancelled, it leaves no process behind.
"""
