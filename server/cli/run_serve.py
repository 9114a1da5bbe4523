"""`certmill serve`: the supervisor's process, with what only it does before it starts the others."""

import sys

import uvloop

from server.cli.banner import banner
from server.cli.guard import guarded, read_config
from server.config import environment
from server.home import AUTHORITY, SUPERVISOR, Home, exclusive
from server.keys.pin import ask_on_terminal
from server.keys.token import ask_pins
from server.logs import make_logger
from server.public_port import require_free
from server.supervisor import Supervisor

_STOPPING_S = 15.0  # how long the authority of an earlier supervisor may take to stop


def serve() -> int:
    """Serve everything until told to stop; returns the exit code."""
    config = read_config()
    home = Home(config.home)
    logger = make_logger(config.log, process="supervisor")

    def on_ready() -> None:
        sys.stdout.write(banner(config))
        sys.stdout.flush()

    def work() -> None:
        home.create()
        with exclusive(home, SUPERVISOR):  # before anything is bound, unlinked or asked for
            with exclusive(home, AUTHORITY, patience_s=_STOPPING_S):
                # The authority of an earlier supervisor that was killed is gone. A person who starts us may have
                # mended a token instead of its PIN: each PIN may be tried once again. A service manager has not.
                if sys.stdin.isatty():
                    home.refused_pins.unlink(missing_ok=True)
            require_free(home, config.listen.public)
            supervisor = Supervisor(
                home=home,
                workers=config.ocsp.workers,
                pins=ask_pins(config, ask_on_terminal),
                environ=dict(environment()),
                logger=logger,
                on_ready=on_ready,
            )
            uvloop.run(supervisor.run())

    return guarded(work)
