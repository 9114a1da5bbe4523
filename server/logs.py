"""Structured logs on standard error: JSON lines for programs, text for people. Built, not configured globally."""

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

from server.config import LogSection

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def make_logger(settings: LogSection, *, process: str) -> FilteringBoundLogger:
    """Make the logger of one process; also takes over what libraries log through `logging`."""
    text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if text else structlog.processors.JSONRenderer()
    logger: FilteringBoundLogger = structlog.wrap_logger(
        # One write a line: several processes share the stream.
        structlog.WriteLogger(cast(TextIO, LossyStream(sys.stderr))),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
    ).bind(process=process)
    logging.basicConfig(handlers=[_Forward(logger)], level=logging.WARNING, force=True)
    return logger


class LossyStream:
    """A stream whose errors cost lines of the log and nothing else.

    The audit log is in the database, not here. A disk that is full under the log must not fail a request, or end a
    loop that wants to say what is wrong.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, or lose it."""
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Forward(logging.Handler):
    """Hands records of the standard library's logging to our logger."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        if _is_a_strangers_fault(record):
            return
        self._logger.log(record.levelno, record.getMessage(), source=record.name, exc_info=record.exc_info)


def _is_a_strangers_fault(record: logging.LogRecord) -> bool:
    """Recognise what aiohttp says about broken HTTP: it got its 400, and whoever wants may send more of it."""
    if record.name != "aiohttp.server":
        return False
    # Here, not above: commands and the supervisor log too, and need no aiohttp, a quarter of a second to import.
    from aiohttp import web  # noqa: PLC0415
    from aiohttp.http_exceptions import HttpProcessingError  # noqa: PLC0415

    error = record.exc_info[1] if record.exc_info else None
    return isinstance(error, HttpProcessingError | web.RequestPayloadError | ConnectionError)
