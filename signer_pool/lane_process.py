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
    Sign,
    encode_frame,
    read_request,
)
from signer_pool.lane_config import LaneConfig, Pkcs11LaneConfig
from signer_pool.sign_batch import sign_batch

_READ_BUFFER_BYTES = 2**18
_UNEXPECTED = "the lane's process met an error that nobody expected"
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
    sys.unraisablehook = tell_unless_of_the_module
    with socket.socket(fileno=int(arguments[0])) as connection:
        serve(connection, open_session)
    return 0


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends: a vendor call that hangs never sees the EOF."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def tell_unless_of_the_module(unraisable: "sys.UnraisableHookArgs") -> None:
    """Print what could not be raised, but for errors of python-pkcs11: it ends searches in destructors.

    Whatever broke the search was raised and told before; a traceback beside it would look like a crash.
    """
    if not type(unraisable.exc_value).__module__.startswith("pkcs11"):
        sys.__unraisablehook__(unraisable)


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
        frame = encode_frame(_ready(session))
    except Exception as error:
        connection.sendall(encode_frame(_failed(error, FailureKind.START)))
        return
    del first
    connection.sendall(frame)
    while (request := read_request(stream)) is not None:
        if isinstance(request, Sign):
            signed = sign_batch(session, request)
            connection.sendall(encode_frame(signed))
            if signed.spoils_lane:
                _wait_for_end(stream)
        else:
            connection.sendall(_answer(session, request))


def _wait_for_end(stream: BinaryIO) -> None:
    """Touch the token no more: it may just have refused the PIN, or be in a state that nobody knows.

    The pool has to see the refusal, so it is for the pool to hang up.
    """
    while stream.read(_READ_BUFFER_BYTES):
        pass


def _answer(session: KeySession, request: Open | Generate | Relist | Ping) -> bytes:
    """Do what is asked and return the frame with the answer. Raises nothing."""
    try:
        return encode_frame(_done(session, request))
    except Exception as error:
        return encode_frame(_failed(error, FailureKind.SIGNING))


def _done(session: KeySession, request: Open | Generate | Relist | Ping) -> Reply:
    if isinstance(request, Generate):
        return Generated(session.generate(request.label, request.algorithm))
    if isinstance(request, Relist):
        return _ready(session)
    if isinstance(request, Ping):
        session.touch()
        return Pong()
    return Failed(FailureKind.START, "the lane is open already")


def _ready(session: KeySession) -> Ready:
    return Ready(session.public_keys(), session.token, session.facts(), session.notes())


def _failed(error: Exception, otherwise: FailureKind) -> Failed:
    """Tell of an error of ours in its words, of another by its class alone: its message may hold the PIN."""
    if not isinstance(error, SignerPoolError):
        return Failed(otherwise, f"{_UNEXPECTED}: {type(error).__name__}")
    code = error.code if isinstance(error, LaneStartError) else 0
    code = error.ckr.code if isinstance(error, TokenRefused) else code
    for kind_of_error, kind in _KINDS:
        if isinstance(error, kind_of_error):
            return Failed(kind, str(error), code)
    return Failed(otherwise, str(error), code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
