"""`python -m tests.support.dying_authority STEP NTH`: the authority as it is, killed (SIGKILL) at one of its steps.

It writes down, in the file `witness` of its home, everything that the token is asked to sign, one line of key label
and hexadecimal TBS each, before the token is asked. NTH counts the passings of STEP since the process was ready
for calls, with `--from-start` since it began. STEP `none` never comes.

For the steps of `abandon`, every third batch of certificates is signed and then reported as failed.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from server import app
from server.authority import prepare_home, run_authority
from server.cli.guard import guarded
from server.config import environment, load_config
from server.keys.token import read_pins
from server.logs import make_logger
from server.milestones import Step
from signer_pool.errors import PoolUnavailable
from signer_pool.pool import Priority, SignerPool

NEVER = "none"
WITNESS = "witness"


class Killer:
    """Milestones that end this process, as a power failure would, at the `nth` passing of `step`."""

    def __init__(self, step: str, nth: int, *, from_start: bool) -> None:
        self._step = step
        self._left = nth
        self._counts = from_start

    def __call__(self, step: Step) -> None:
        if step == self._step and self._counts:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if step is Step.OWN_CERTIFICATES:
            self._counts = True


def witnessed(file: int, *, fails: bool) -> type[SignerPool]:
    """Make the class of a pool that writes down what it is asked to sign."""

    class WitnessedPool(SignerPool):
        calls = 0

        async def sign_many(
            self,
            key: str,
            tbs_list: Sequence[bytes],
            priority: Priority,
            *,
            algorithm: str | None = None,
            client: str = "",
            deadline_s: float = 30.0,
        ) -> list[bytes]:
            os.write(file, b"".join(f"{key} {bytes(tbs).hex()}\n".encode() for tbs in tbs_list))
            signatures = await super().sign_many(
                key, tbs_list, priority, algorithm=algorithm, client=client, deadline_s=deadline_s
            )
            if fails and key == "issuing" and priority in {Priority.INTERACTIVE, Priority.BULK}:
                self.calls += 1
                if self.calls % 3 == 0:
                    raise PoolUnavailable("a test says so, after the signature")
            return signatures

    return WitnessedPool


def main() -> None:
    """Run until killed, or until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=[NEVER, *Step])
    parser.add_argument("nth", type=int)
    parser.add_argument("--from-start", action="store_true")
    arguments = parser.parse_args()
    os.umask(0o077)
    config = load_config(environment())
    logger = make_logger(config.log, process="authority")
    file = os.open(Path(config.home) / WITNESS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    # The one place that makes the pool: this process has another one.
    vars(app)["SignerPool"] = witnessed(file, fails=arguments.step.startswith("abandon"))
    killer = Killer(arguments.step, arguments.nth, from_start=arguments.from_start)

    def work() -> None:
        lanes = prepare_home(config, logger, read_pins(config, environment(), {}))
        uvloop.run(run_authority(config, lanes, logger, environment(), killer))

    sys.exit(guarded(work))


if __name__ == "__main__":
    main()
