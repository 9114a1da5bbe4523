"""How the tests themselves run beside one another, and what is seen when one fails."""

import contextlib
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.alone import Turns
from tests.support.ports import free_ports

ROOT = Path(__file__).parents[2]

# What is left behind by a test that failed, and is collected while pytest parses the long source of the next.
LEAVING = """
import pytest

class Leak:
    def __init__(self):
        self.me = self
    def __del__(self):
        raise ValueError("left" + str([][0] + 1))

@pytest.mark.parametrize("number", range(4))
def test_fails(number):
    leaks = [Leak() for _ in range(50)]
    del leaks
    assert number < 0
"""


def test_many_run_at_a_time_or_one_alone_and_who_waits_comes_first(tmp_path: Path) -> None:
    turns, order = Turns(tmp_path), list[str]()

    def take(name: str, *, alone: bool) -> None:
        with turns.turn(alone=alone):
            order.append(name)

    with turns.turn(alone=False), turns.turn(alone=False):
        lonely = threading.Thread(target=take, args=("alone",), kwargs={"alone": True})
        lonely.start()
        while not is_locked(tmp_path / "alone.door"):
            pass
        late = threading.Thread(target=take, args=("late",), kwargs={"alone": False})
        late.start()
        late.join(0.05)
        assert order == []
    lonely.join()
    late.join()
    assert order == ["alone", "late"]


def is_locked(path: Path) -> bool:
    with path.open("a") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def test_two_processes_get_no_port_both() -> None:
    ours = set(free_ports(400))
    command = [sys.executable, "-c", "from tests.support.ports import free_ports; print(*free_ports(400))"]
    theirs = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert ours.isdisjoint(map(int, theirs))


def test_a_failure_is_shown_whatever_is_collected_meanwhile(tmp_path: Path) -> None:
    lines = (f"def f{n}(a, b): return a * b - (a if b else [a, b, {{a: {n}}}])" for n in range(200))
    (tmp_path / "test_it.py").write_text("\n".join((LEAVING, *lines)))
    options = ["-p", "tests.conftest", "-c", "pyproject.toml", "-n0", "--basetemp", str(tmp_path / "base")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_it.py")],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")},
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "INTERNALERROR" not in done.stdout
    assert "4 failed" in done.stdout
