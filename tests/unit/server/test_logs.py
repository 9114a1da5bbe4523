"""The log may be lost; nothing else may be lost with it."""

import errno
import io
from pathlib import Path

import structlog

from server.logs import LossyStream


class FullDisk(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_on_a_full_disk_costs_its_lines_alone() -> None:
    structlog.WriteLogger(LossyStream(FullDisk())).info("one line")  # type: ignore[arg-type]


def test_lines_are_written_whole_where_there_is_room(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        structlog.WriteLogger(LossyStream(file)).info("one line")  # type: ignore[arg-type]
    assert (tmp_path / "log").read_text() == "one line\n"
