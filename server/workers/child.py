"""The worker's end: it answers one request after the other, and ends when its parent does."""

import contextlib
import ctypes
import signal
import socket
from collections.abc import Callable
from typing import BinaryIO, TypeVar, cast

import msgspec

from server.workers.frames import LENGTH_BYTES, body_length, decode_frame, encode_frame

T = TypeVar("T", bound=msgspec.Struct)
_PR_SET_PDEATHSIG = 1


def run(descriptor: str, serve: Callable[[BinaryIO], None]) -> int:
    """Serve the inherited socket of this descriptor until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they may reach the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A parent that is gone needs no answer, and nobody a traceback.
    with (
        contextlib.suppress(ConnectionError),
        socket.socket(fileno=int(descriptor)) as connection,
        connection.makefile("rwb") as stream,
    ):
        serve(cast("BinaryIO", stream))
    return 0


def send(stream: BinaryIO, frame: msgspec.Struct) -> None:
    """Send a frame."""
    stream.write(encode_frame(frame))
    stream.flush()


def receive(stream: BinaryIO, kind: type[T]) -> T | None:
    """Return the next frame; None at the end. Raises `FrameError`."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = body_length(head)
    body = stream.read(length)
    return decode_frame(body, kind) if len(body) == length else None
