"""Readiness in systemd's protocol (sd_notify(3)): the supervisor listens for it just as systemd does."""

import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], state: str) -> None:
    """Send `state` (for example READY=1) to the socket in NOTIFY_SOCKET, if there is one."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(1.0)
        try:
            sender.connect(address)
            sender.send(state.encode())
        except OSError:
            return  # nobody listens any more: readiness is not worth failing for
