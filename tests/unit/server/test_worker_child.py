"""A worker process whose parent dies."""

import socket
import subprocess
import sys

CODE = """
import sys
from server.workers.child import run
def serve(stream):
    stream.write(b"ready")
    stream.flush()
sys.exit(run(sys.argv[1], serve))
"""


def test_a_worker_whose_parent_is_gone_ends_without_a_word() -> None:
    ours, its = socket.socketpair()
    ours.close()
    with its:
        command = [sys.executable, "-c", CODE, str(its.fileno())]
        done = subprocess.run(
            command, pass_fds=[its.fileno()], capture_output=True, text=True, timeout=30, check=False
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
