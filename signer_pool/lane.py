"""The lane contract: what a lane is told, the frames between parent and child, and both ends' protocols.

A lane is one child process that owns one session of one token. Parent and child exchange frames over a
socket pair: four bytes of length, big-endian, then one msgpack message. The child answers in the order of
the requests, one answer for each:

    Open -> Ready | Failed          the first frame, and the only one that carries a PIN
    Sign -> Signed                  up to two of them wait in the pipe, so that the token never idles
    Generate -> Generated | Failed
    Relist -> Ready | Failed        another lane made a key
"""

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import msgspec

from pkix.algorithms import KeyAlgorithm
from signer_pool.errors import SignerPoolError

MAX_FRAME_BYTES = 64 * 2**20
_LENGTH_BYTES = 4


class Pkcs11LaneConfig(msgspec.Struct, frozen=True, kw_only=True, tag="pkcs11"):
    """A session of a PKCS #11 token. `env` is added to the child's environment; the PIN never is.

    No form of it that people see (repr, rich) shows the PIN.
    """

    module_path: str
    token_label: str
    pin: str
    env: dict[str, str] = {}

    @property
    def token(self) -> str:
        """Name the token and its module, for people."""
        return f"token {self.token_label!r} of {self.module_path}"

    def __repr__(self) -> str:
        return f"Pkcs11LaneConfig(module_path={self.module_path!r}, token_label={self.token_label!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("module_path", self.module_path), ("token_label", self.token_label)]


class SoftwareLaneConfig(msgspec.Struct, frozen=True, kw_only=True, tag="software"):
    """Keys in files: encrypted PKCS #8, `<label>.pem` in `directory`. The passphrase is never shown."""

    directory: str
    passphrase: str

    @property
    def token(self) -> str:
        """Name the directory, for people."""
        return f"software keys in {self.directory}"

    @property
    def env(self) -> dict[str, str]:
        """Return what to add to the child's environment: nothing."""
        return {}

    def __repr__(self) -> str:
        return f"SoftwareLaneConfig(directory={self.directory!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("directory", self.directory)]


LaneConfig = Pkcs11LaneConfig | SoftwareLaneConfig


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of the frames."""


class Open(Frame, frozen=True, tag="open"):
    """Open the token and log in."""

    config: LaneConfig


class Sign(Frame, frozen=True, tag="sign"):
    """Sign every TBS with the key of this label."""

    batch_id: int
    key: str
    tbs: Sequence[bytes]


class Generate(Frame, frozen=True, tag="generate"):
    """Make a key pair that never leaves the token."""

    label: str
    algorithm: KeyAlgorithm


class Relist(Frame, frozen=True, tag="relist"):
    """Look for keys again."""


class Ready(Frame, frozen=True, tag="ready"):
    """The token is open. `public_keys`: label to SubjectPublicKeyInfo DER of every usable key."""

    public_keys: dict[str, bytes]
    token: str


class Signed(Frame, frozen=True, tag="signed"):
    """A signature for each TBS, in order; empty where `errors` (by index) says why there is none.

    `service_s`: seconds spent in the token.
    """

    batch_id: int
    signatures: list[bytes]
    errors: dict[int, str]
    service_s: float


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
    """The request could not be done; `message` is one line for the operator."""

    kind: FailureKind
    message: str


Request = Open | Sign | Generate | Relist
Reply = Ready | Signed | Generated | Failed

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


class KeySession(Protocol):
    """The child's side: one open session of a token. Blocking; one thread."""

    @property
    def token(self) -> str:
        """Describe the token, for people."""
        ...

    def public_keys(self) -> dict[str, bytes]:
        """Look for keys: label to SubjectPublicKeyInfo DER. Raises `LaneStartError`."""
        ...

    def signer(self, label: str) -> Callable[[bytes], bytes]:
        """Return a function from TBS to signature (PKCS #1 v1.5, or DER Ecdsa-Sig-Value).

        Raises `SigningFailed`, and so does the function.
        """
        ...

    def generate(self, label: str, algorithm: KeyAlgorithm) -> bytes:
        """Make a key pair and return its SubjectPublicKeyInfo DER; raises `KeyExists`, `SigningFailed`."""
        ...


SignedCallback = Callable[[Signed | None], None]
"""Called once for each batch sent: with the answer, or None when the lane was lost before it came."""


class Lane(Protocol):
    """The parent's side: a ready lane. Its methods never block; all of it belongs to one event loop."""

    public_keys: Mapping[str, bytes]

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

    def send(self, key: str, tbs: Sequence[bytes], done: SignedCallback) -> None:
        """Send a batch; `done` is called exactly once, never from inside this call."""
        ...

    async def ask(self, request: Generate | Relist, *, deadline_s: float) -> Reply:
        """Send another request and wait; raises `PoolUnavailable` if the lane is lost."""
        ...

    async def wait_lost(self) -> str:
        """Wait until the lane is lost and return the reason: one word, fit for a metric's label."""
        ...

    def kill(self, reason: str) -> None:
        """Kill the child at once; every batch in flight is given back by its callback."""
        ...

    async def close(self) -> None:
        """End the child and reap it; idempotent."""
        ...


LaneOpener = Callable[[LaneConfig, float], Awaitable[Lane]]
"""Start a lane of this configuration, with this deadline for each batch (seconds); it must become ready.

Raises `LaneStartError`, `PinRejected`. When cancelled, it leaves no process behind.
"""
