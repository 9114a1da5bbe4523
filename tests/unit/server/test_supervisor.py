"""What the supervisor makes of its children's ends; the children are small scripts that follow a plan."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# One line of the plan for each start (the last one for all further ones): "FIELD=value|FIELD=value what-then".
# What then: an exit code; "stay" until SIGTERM; "78-when-told" waits for the file `told`.
CHILD = """
import os, signal, socket, sys, time
directory, command = sys.argv[1:3]
name = "ocsp-" + sys.argv[4] if command == "ocsp" else command
with open(f"{directory}/{name}.starts", "a+") as starts:
    starts.write(f"{os.getpid()}\\n")
    starts.seek(0)
    number = len(starts.readlines())
plan = open(f"{directory}/{name}.plan").read().splitlines()
fields, _, then = plan[min(number, len(plan)) - 1].rpartition(" ")
if fields:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        to.send(fields.replace("|", "\\n").encode())
if then == "stay":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        signal.pause()
if then.endswith("-when-told"):
    while not os.path.exists(f"{directory}/told"):
        time.sleep(0.01)
sys.exit(int(then.partition("-")[0]))
"""
RUNNER = """
import asyncio, json, os, sys
from pathlib import Path
from server.config import LogSection
from server.errors import ServerError
from server.home import Home
from server.logs import make_logger
from server.supervisor import Pauses, Supervisor
directory, child, slowly, *program = sys.argv[1:]
home = Home(Path(directory) / "home")
home.create()
supervisor = Supervisor(
    home=home, workers=2, pins={}, environ=dict(os.environ), logger=make_logger(LogSection(format="json"), process="s"),
    on_ready=lambda: print("ready", flush=True), program=program or [sys.executable, "-S", "-c", child, directory],
    pauses=Pauses(growing=(0.01, 0.02), slowly=float(slowly)),
)
try:
    asyncio.run(supervisor.run())
except ServerError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(78)
"""
WORKS = "READY=1 stay"


@dataclass
class Supervised:
    """A supervisor in a process of its own; `plan` says what each child does at each start."""

    directory: Path
    slowly_s: float = 0.05
    environ: dict[str, str] = field(default_factory=dict)

    def start(self, *program: str, **plans: str | list[str]) -> None:
        everyone: dict[str, str | list[str]] = {"ocsp_0": WORKS, "ocsp_1": WORKS, "authority": WORKS, **plans}
        for name, plan in everyone.items():
            lines = [plan] if isinstance(plan, str) else plan
            (self.directory / f"{name.replace('_', '-')}.plan").write_text("\n".join(lines))
        self.said, self.log = self.directory / "said", self.directory / "log"
        with self.said.open("w") as said, self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUNNER, str(self.directory), CHILD, str(self.slowly_s), *program],
                stdout=said, stderr=log, env={**os.environ, **self.environ},
            )  # fmt: skip

    def starts(self, name: str) -> list[str]:
        """Return the process ids that a child has had."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / f"{name}.starts").read_text().split()
        return []

    def lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if event in line["event"]]

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def is_ready(self) -> bool:
        return self.said.read_text() == "ready\n"

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    one = Supervised(tmp_path)
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()


def test_a_setting_that_is_wrong_at_the_first_start_ends_everything_and_is_told_last(
    supervised: Supervised,
) -> None:
    supervised.start(authority="STATUS=setting listen.api: taken 78")
    assert supervised.process.wait(20) == 78
    assert supervised.said.read_text() == "StartRefused setting listen.api: taken\n"


@pytest.mark.parametrize("who", ["ocsp_1", "authority"])
def test_an_end_without_a_word_at_the_first_start_names_the_process(supervised: Supervised, who: str) -> None:
    supervised.start(**{who: " 78"})
    assert supervised.process.wait(20) == 78
    assert supervised.said.read_text().startswith(f"StartRefused {who.replace('_', '-')} ended with exit code 78")


def test_what_may_pass_is_tried_again_and_the_workers_do_not_notice(supervised: Supervised) -> None:
    supervised.start(authority=["STATUS=database is locked 75", "STATUS=database is locked 75", " 1", WORKS])
    supervised.until(supervised.is_ready)
    assert len(supervised.starts("authority")) == 4
    assert len(supervised.starts("ocsp-0")) == len(supervised.starts("ocsp-1")) == 1
    told = supervised.lines("will be started again")
    assert [(line["code"], line["cause"]) for line in told] == [(75, "database is locked")] * 2 + [(1, None)]
    assert supervised.stop() == 0


def test_ready_is_said_once_when_every_child_has_said_it(supervised: Supervised) -> None:
    supervised.start(ocsp_1=[" 1-when-told", WORKS], authority=["READY=1 1", WORKS])
    supervised.until(lambda: len(supervised.starts("authority")) == 2)
    assert supervised.said.read_text() == "", "a worker does not listen yet"
    (supervised.directory / "told").touch()
    supervised.until(supervised.is_ready)
    os.kill(int(supervised.starts("authority")[-1]), signal.SIGKILL)
    supervised.until(lambda: len(supervised.starts("authority")) == 3)
    assert supervised.stop() == 0
    assert supervised.said.read_text() == "ready\n"


@pytest.mark.parametrize("who", ["ocsp_1", "authority"])
def test_once_ready_a_wrong_setting_ends_nothing_and_is_tried_slowly(supervised: Supervised, who: str) -> None:
    supervised.start(**{who: ["READY=1 78-when-told", "STATUS=setting x: wrong 78", WORKS]})
    supervised.until(supervised.is_ready)
    (supervised.directory / "told").touch()
    name = who.replace("_", "-")
    supervised.until(lambda: len(supervised.starts(name)) == 3)
    assert len(supervised.starts("ocsp-0")) == 1
    told = supervised.lines("will be started again")
    assert [(line["code"], line["pause_s"], line["cause"]) for line in told] == [
        (78, supervised.slowly_s, None),
        (78, supervised.slowly_s, "setting x: wrong"),
    ]
    assert supervised.stop() == 0


def test_a_pin_that_was_refused_is_not_tried_again_and_the_workers_go_on(supervised: Supervised) -> None:
    supervised.start(authority=["READY=1 1-when-told", "STATUS=the PIN was refused|ERRNO=13 78", WORKS])
    supervised.until(supervised.is_ready)
    (supervised.directory / "told").touch()
    supervised.until(lambda: supervised.lines("NOT started again"))
    time.sleep(10 * supervised.slowly_s)
    assert len(supervised.starts("authority")) == 2
    (told,) = supervised.lines("NOT started again")
    assert "Correct the PIN, then stop certmill (SIGTERM) and start it" in told["event"]
    assert told["cause"] == "the PIN was refused"
    os.kill(int(supervised.starts("ocsp-0")[0]), signal.SIGKILL)
    supervised.until(lambda: len(supervised.starts("ocsp-0")) == 2)
    assert supervised.stop() == 0


def test_what_a_stranger_says_is_not_believed(supervised: Supervised) -> None:
    supervised.start(authority="STATUS=starting stay")
    notify = supervised.directory / "home/run/notify.sock"
    supervised.until(lambda: len(supervised.starts("authority")) == 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.connect(str(notify))
        stranger.send(b"READY=1")
    time.sleep(0.2)
    assert supervised.stop() == 0
    assert supervised.said.read_text() == ""


def test_a_child_that_cannot_be_started_is_tried_again(supervised: Supervised) -> None:
    supervised.start("/no/such/program")
    supervised.until(lambda: len(supervised.lines("will be started again")) > 6)
    assert "cannot be started" in supervised.lines("will be started again")[0]["cause"]
    assert supervised.stop() == 0
    assert not supervised.said.read_text()


def test_systemd_hears_how_we_are(supervised: Supervised) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(supervised.directory / "systemd"))
        systemd.settimeout(20)
        supervised.environ["NOTIFY_SOCKET"] = str(supervised.directory / "systemd")
        supervised.start(authority=["STATUS=database is locked 75", WORKS])
        heard: list[bytes] = []
        while b"READY=1" not in heard:
            heard.append(systemd.recv(8192))
        assert any(b"not ready: authority: database is locked" in line for line in heard)
        assert heard[-2] == b"STATUS=ready"
        assert supervised.stop() == 0
