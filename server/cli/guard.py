"""What all commands share: settings, and errors that become one line and an exit code."""

import errno
from collections.abc import Callable, Iterator

import typer

from ocsp.errors import ListenError, OcspError
from server.config import Config, environment, load_config
from server.errors import AlreadyRunning, ConfigError, ServerError, StartRefused
from server.notify import notify
from server.supervisor import EXIT_CONFIG, EXIT_TEMPORARY, PIN_REFUSED
from signer_pool.errors import KeyMismatch, PinRejected, SignerPoolError

# What an operator must mend before another start can succeed. The rest may heal: the supervisor tries again.
_FINAL = (ConfigError, AlreadyRunning, PinRejected, KeyMismatch, ListenError, StartRefused)
_OURS = (ServerError, SignerPoolError, OcspError)
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


def read_config(*, supervised: bool = False) -> Config:
    """Read the settings, or end the command."""
    try:
        return load_config(environment())
    except ServerError as error:
        raise typer.Exit(_complain(error, supervised=supervised)) from None


def guarded(work: Callable[[], None], *, supervised: bool = False) -> int:
    """Run, and return the exit code.

    An error that the operator can mend becomes one line and exit code 78 or 75, never a traceback.
    """
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        group = error if isinstance(error, ExceptionGroup) else ExceptionGroup("one", [error])
        expected, other = group.split(_is_ours)
        if other is not None or expected is None:
            raise
        errors = list(_leaves(expected))
        final = [error for error in errors if isinstance(error, _FINAL)]
        return _complain((final or errors)[0], supervised=supervised)
    return 0


def _is_ours(error: Exception) -> bool:
    """Say whether an operator can mend it: ours, or of the disk under a file of the home."""
    return isinstance(error, _OURS) or (isinstance(error, OSError) and error.errno in _DISK)


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _complain(error: Exception, *, supervised: bool) -> int:
    """Tell the supervisor, or systemd, in one line what is wrong, and the terminal unless the supervisor does."""
    line = str(error).replace("\n", " ")
    refused = f"\nERRNO={PIN_REFUSED}" if isinstance(error, PinRejected) else ""
    heard = notify(environment(), f"STATUS={line}{refused}")
    if not (supervised and heard):
        typer.echo(f"certmill: {line}", err=True)
    return EXIT_CONFIG if isinstance(error, _FINAL) else EXIT_TEMPORARY
