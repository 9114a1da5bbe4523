"""`certmill init` and `certmill authority`: the process that holds the database and asks the HSMs."""

import sys

import uvloop

from server.authority import initialise, prepare_home, run_authority
from server.cli.guard import guarded, read_config
from server.config import Config, environment
from server.keys.pin import ask_on_terminal, receive_pins
from server.keys.token import ask_pins, read_pins
from server.logs import make_logger


def init() -> int:
    """Make what serving needs; returns the exit code."""
    config = read_config()
    logger = make_logger(config.log, process="init")

    def work() -> None:
        lanes = prepare_home(config, logger, _pins(config, on_stdin=False))
        uvloop.run(initialise(config, lanes, logger))

    return guarded(work)


def authority(*, pins_on_stdin: bool, supervised: bool) -> int:
    """Serve the authority until told to stop; returns the exit code."""
    config = read_config(supervised=supervised)
    logger = make_logger(config.log, process="authority")

    def work() -> None:
        lanes = prepare_home(config, logger, _pins(config, on_stdin=pins_on_stdin))
        uvloop.run(run_authority(config, lanes, logger, environment()))

    return guarded(work, supervised=supervised)


def _pins(config: Config, *, on_stdin: bool) -> dict[str, str]:
    typed = receive_pins(sys.stdin.buffer) if on_stdin else ask_pins(config, ask_on_terminal)
    return read_pins(config, environment(), typed)
