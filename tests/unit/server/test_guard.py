"""Errors that an operator can mend become one line and an exit code; defects stay tracebacks."""

import errno

import pytest

from server.cli.guard import guarded
from server.errors import ConfigError, StorageError


def raising(error: BaseException) -> int:
    def work() -> None:
        raise error

    return guarded(work)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (StorageError("the database is away"), 75, "certmill: the database is away\n"),
        (ConfigError("setting x is wrong"), 78, "certmill: setting x is wrong\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 75, "certmill: [Errno 28] No space left on device\n"),
        (ExceptionGroup("g", [OSError(errno.EIO, "I/O error"), ConfigError("x")]), 78, "certmill: x\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=["75", "78", "full disk", "group", "Ctrl-C"],
)
def test_what_an_operator_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    assert raising(error) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "error",
    [ValueError("a defect"), OSError(errno.EBADF, "Bad file descriptor"), ExceptionGroup("g", [ValueError()])],
)
def test_a_defect_stays_a_defect(error: Exception) -> None:
    with pytest.raises(type(error)):
        raising(error)
