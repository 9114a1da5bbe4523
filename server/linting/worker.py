"""A linter's process: `python -m server.linting.worker FD`.

It reads certificates from the inherited socket FD and answers each with what pkilint finds, one after the other.
It holds no key, no database and no state, and ends when its parent does.
"""

import logging
import sys
from importlib.metadata import version
from typing import BinaryIO

from server.linting.frames import Lint, Linted
from server.workers.child import receive, run, send
from server.workers.frames import Ready

MODULE = "server.linting.worker"


def serve(stream: BinaryIO) -> None:
    """Say that we are ready, then answer until the stream ends."""
    logging.disable(logging.CRITICAL)  # pkilint logs what it also finds, tracebacks included
    from server.linting.linters import lint  # noqa: PLC0415 - what takes long, only in the process

    send(stream, Ready(version("pkilint")))
    while (request := receive(stream, Lint)) is not None:
        send(stream, Linted(lint(request.certificate_der, request.linter)))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], serve))
