"""A linter's process: `python -m server.linting.worker FD`.

It reads certificates from the inherited socket FD and answers each with what pkilint finds, one after the other.
It holds no key, no database and no state, and ends when its parent does.
"""

import ctypes
import logging
import signal
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import BinaryIO

from server.linting.findings import Finding
from server.linting.frames import LENGTH_BYTES, Lint, Linted, Ready, body_length, decode_frame, encode_frame

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve the socket whose descriptor is the only argument, until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they may reach the whole group: the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    logging.disable(logging.CRITICAL)  # pkilint logs what it also finds, tracebacks included
    from server.linting.linters import lint  # noqa: PLC0415 - what takes long, only here

    with socket.socket(fileno=int(arguments[0])) as connection, connection.makefile("rwb") as stream:
        serve(stream, lint)  # type: ignore[arg-type]
    return 0


def serve(stream: BinaryIO, lint: Callable[[bytes, str], list[Finding]]) -> None:
    """Say that we are ready, then answer until the stream ends."""
    _send(stream, Ready(version("pkilint")))
    while (request := _read(stream)) is not None:
        _send(stream, Linted(lint(request.certificate_der, request.linter)))


def _send(stream: BinaryIO, frame: Ready | Linted) -> None:
    stream.write(encode_frame(frame))
    stream.flush()


def _read(stream: BinaryIO) -> Lint | None:
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = body_length(head)
    body = stream.read(length)
    return decode_frame(body, Lint) if len(body) == length else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
