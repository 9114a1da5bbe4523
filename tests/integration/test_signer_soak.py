"""The soak test, shortly: it finds nothing wrong with the pool, and would find it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.tokens import SECRETS

ROOT = Path(__file__).parents[2]

# Every 500th signature that is delivered has a bit flipped, after it was verified.
LYING_POOL = """
import itertools, sys
from signer_pool.backlog import Call
from loadtests.soak_signer import main
deliver, numbers = Call.deliver, itertools.count(1)
def lie(call, index, signature):
    deliver(call, index, signature[:-1] + bytes((signature[-1] ^ (next(numbers) % 500 == 0),)))
Call.deliver = lie
sys.argv[1:] = ["--seconds", "2", "--seed", "1", "--json"]
main()
"""


def soak(*command: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_fifteen_seconds_of_faults_leave_no_trace() -> None:
    status, told = soak("-m", "loadtests.soak_signer", "--seconds", "15", "--json")
    assert told["violations"] == [], told
    assert status == 0
    assert told["figures"]["signatures"] > 5000
    assert told["figures"]["lane starts"] > 10
    assert sum(count for fault, count in told["faults"].items() if fault != "caller hangs up") > 10


def test_violations_are_told_and_fail_the_run() -> None:
    status, told = soak("-c", LYING_POOL)
    assert status == 1
    assert any("not its own" in violation for violation in told["violations"])
