"""How commands show tables: for people on a terminal, for programs everywhere else."""

import io
from typing import TextIO

from rich.console import Console

_PIPE_COLUMNS = 10_000  # no line is folded for a program


def console_for(stream: TextIO) -> Console:
    """Return a console without colours and without folding unless somebody looks at it."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a token's label may be more than the terminal can show
    on_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=on_terminal,
        width=None if on_terminal else _PIPE_COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
    )
