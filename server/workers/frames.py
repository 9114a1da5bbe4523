"""What the authority and a worker's process say to each other: msgpack with its length in front."""

from typing import TypeVar

import msgspec

LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 * 2**20


class Ready(msgspec.Struct, frozen=True, array_like=True):
    """The first frame of a process: it has loaded what it needs."""

    version: str


T = TypeVar("T", bound=msgspec.Struct)


class FrameError(ValueError):
    """The bytes are not what the other end has to say."""


def encode_frame(frame: msgspec.Struct) -> bytes:
    """Return the frame with its length in front."""
    body = msgspec.msgpack.encode(frame)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def body_length(head: bytes) -> int:
    """Return how many bytes follow; raises `FrameError`."""
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes")
    return length


def decode_frame(body: bytes, kind: type[T]) -> T:
    """Decode a frame that has to be of this kind; raises `FrameError`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise FrameError(f"not a {kind.__name__}") from error
