"""Keeps two certmills from sharing the public port.

OCSP workers share it (SO_REUSEPORT), and the kernel would let any other process of the same user join them: half
of the relying parties would then be answered by another CA. So the first worker of a home listens alone, which the
kernel grants to one socket only, and then opens its socket to others. Another worker may join only while a worker
of the same home listens there, which says so in the lock file that it holds.

No time passes between looking and taking, so homes that start at the same instant do not both get the port. What
is left: a program that is not certmill, of the same user, that asks for SO_REUSEPORT after us.
"""

import errno
import socket
import time
from contextlib import ExitStack

from ocsp.errors import ListenError
from server.config import Address
from server.home import Home, held

_PATIENCE_S = 5.0  # for a worker that was just told to stop, or has begun to listen and is about to say so
_POLL_S = 0.05


def listen(home: Home, address: Address, *, backlog: int) -> list[socket.socket]:
    """Listen on the public address, alone or beside workers of this home; raises `ListenError`. Blocking.

    Whoever listens says so then with a note in the lock that it holds: `Lock.write(str(address))`.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        beside = _sibling_listens(home, address)
        try:
            sockets = _open(address, shared=beside, backlog=backlog)
        except OSError as error:
            _wait_or_raise(error, address, deadline)
            continue
        if not beside or _sibling_listens(home, address):
            return sockets
        for one in sockets:  # the sibling is gone, and who knows beside whom we listen
            one.close()


def require_free(home: Home, address: Address) -> None:
    """Return when somebody of this home could listen there; raises `ListenError`. Blocking. Takes nothing."""
    deadline = time.monotonic() + _PATIENCE_S
    while not _sibling_listens(home, address):
        try:
            for one in _open(address, shared=False, backlog=None):
                one.close()
        except OSError as error:
            _wait_or_raise(error, address, deadline)
        else:
            return


def _wait_or_raise(error: OSError, address: Address, deadline: float) -> None:
    if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
        raise ListenError(
            f"setting listen.public: cannot listen on {address}: {error.strerror or error}; "
            "stop what listens there, or choose another address"
        ) from None
    time.sleep(_POLL_S)


def _sibling_listens(home: Home, address: Address) -> bool:
    return any(held(path) == str(address) for path in home.run.glob("ocsp-*.lock"))


def _open(address: Address, *, shared: bool, backlog: int | None) -> list[socket.socket]:
    """Bind a socket to each address that the host has, and listen unless `backlog` is None.

    SO_REUSEADDR: connections that were closed a minute ago are in nobody's way.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with ExitStack() as undo:
        sockets = []
        for family, kind, protocol, _, bound in dict.fromkeys(found):
            one = undo.enter_context(socket.socket(family, kind, protocol))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(bound)
            if backlog is not None:
                one.listen(backlog)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # alone until here, now for siblings
            sockets.append(one)
        undo.pop_all()
    return sockets
