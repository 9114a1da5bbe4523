"""Readiness in systemd's protocol (sd_notify(3)): the supervisor listens for it just as systemd does."""

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_BYTES = 8192
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


def notify(environ: Mapping[str, str], state: str) -> bool:
    """Send `state` (for example READY=1) to the socket in NOTIFY_SOCKET, if there is one; say whether it left."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        try:
            sender.connect(address)
            sender.send(state.encode()[:_LONGEST_BYTES])
        except OSError:
            return False  # nobody listens any more: readiness is not worth failing for
        return True


@contextmanager
def notifications(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, in the place of whoever listened there before."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        receiver.bind(str(path))
        yield receiver
    path.unlink(missing_ok=True)


def received(receiver: socket.socket) -> Iterator[tuple[int, dict[str, str]]]:
    """Take what has arrived: the sender's process id, as the kernel knows it, and its fields."""
    with suppress(BlockingIOError):
        while True:
            data, ancillary, *_ = receiver.recvmsg(_LONGEST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            for level, kind, credentials in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid, *_ = _CREDENTIALS.unpack(credentials)
                    lines = data.decode("utf-8", "replace").split("\n")
                    yield pid, {name: value for name, _, value in (line.partition("=") for line in lines)}
