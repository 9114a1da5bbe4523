"""A lane's child process: `python -m signer_pool.lane_process FD`.

It owns one session of one token, reads requests from the inherited socket FD and answers each in turn,
blocking. Not over standard output: vendor libraries print there. It ends when its parent does.
"""

import ctypes
import signal
import socket
import sys
from collections.abc import Callable
from typing import BinaryIO, cast

from signer_pool.errors import KeyExists, LaneStartError, PinRejected, SignerPoolError, TokenRefused
from signer_pool.lane import (
    Failed,
    FailureKind,
    Generate,
    Generated,
    KeySession,
    Open,
    Ping,
    Pong,
    Ready,
    Relist,
    Reply,
    Request,
    Sign,
    Signed,
    encode_frame,
    read_request,
)
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig
from signer_pool.sign_batch import sign_batch

_READ_BUFFER_BYTES = 2**18
_PR_SET_PDEATHSIG = 1
_KINDS = (
    (PinRejected, FailureKind.PIN),
    (LaneStartError, FailureKind.START),
    (KeyExists, FailureKind.KEY_EXISTS),
)


def main(arguments: list[str]) -> int:
    """Serve the socket whose descriptor is the only argument, until the parent closes it."""
    # Ctrl-C and a service manager's SIGTERM may reach the whole group. The parent decides when lanes end:
    # signatures that it still waits for must come.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()
    with socket.socket(fileno=int(arguments[0])) as connection:
        serve(connection, open_session)
    return 0


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends: a vendor call that hangs never sees the EOF."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def open_session(config: LaneConfig) -> KeySession:
    """Open the token; raises `LaneStartError`, `PinRejected`.

    Imports what it needs and nothing else: a respawn waits for it.
    """
    if isinstance(config, Pkcs11LaneConfig):
        from signer_pool.pkcs11_session import open_pkcs11_session  # noqa: PLC0415

        return open_pkcs11_session(config)
    from signer_pool.software import SoftwareSession  # noqa: PLC0415

    return SoftwareSession(config)


def serve(connection: socket.socket, opener: Callable[[LaneConfig], KeySession]) -> None:
    """Answer requests until the parent closes the connection, which is how a lane ends."""
    with connection.makefile("rb", buffering=_READ_BUFFER_BYTES) as stream:
        try:
            _serve_stream(connection, cast("BinaryIO", stream), opener)
        except ConnectionError:
            return


def _serve_stream(connection: socket.socket, stream: BinaryIO, opener: Callable[[LaneConfig], KeySession]) -> None:
    first = read_request(stream)
    if not isinstance(first, Open):
        return
    try:
        session = opener(first.config)
        ready = _ready(session)
    except SignerPoolError as error:
        connection.sendall(encode_frame(_failed(error)))
        return
    del first
    connection.sendall(encode_frame(ready))
    while (request := read_request(stream)) is not None:
        reply = _answer(session, request)
        connection.sendall(encode_frame(reply))
        if isinstance(reply, Signed) and reply.spoils_lane:
            _wait_for_end(stream)


def _wait_for_end(stream: BinaryIO) -> None:
    """Touch the token no more: healing the next batch would log in, perhaps with a PIN that was just refused.

    The pool has to see the refusal, so it is for the pool to hang up.
    """
    while stream.read(_READ_BUFFER_BYTES):
        pass


def _answer(session: KeySession, request: Request) -> Reply:
    if isinstance(request, Sign):
        return sign_batch(session, request)
    try:
        if isinstance(request, Generate):
            return Generated(session.generate(request.label, request.algorithm))
        if isinstance(request, Relist):
            return _ready(session)
        if isinstance(request, Ping):
            session.touch()
            return Pong()
    except SignerPoolError as error:
        return _failed(error)
    return Failed(FailureKind.START, "the lane is open already")


def _ready(session: KeySession) -> Ready:
    return Ready(session.public_keys(), session.token, session.facts(), session.notes())


def _failed(error: SignerPoolError) -> Failed:
    code = error.code if isinstance(error, LaneStartError) else 0
    code = error.ckr.code if isinstance(error, TokenRefused) else code
    for kind_of_error, kind in _KINDS:
        if isinstance(error, kind_of_error):
            return Failed(kind, str(error), code)
    return Failed(FailureKind.SIGNING, str(error), code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
