"""The commands of `certmill`: how they are called. What they do stands in run_*.py, loaded by whoever needs it."""

import os
from typing import Annotated

import typer

from server import __version__
from server.cli.batch import app as batch_app
from server.cli.client import app as client_app
from server.cli.db import app as db_app
from server.cli.profile import app as profile_app
from server.cli.request import request
from server.cli.token import app as token_app

Supervised = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="What is wrong goes to NOTIFY_SOCKET; its owner tells.")
]

app = typer.Typer(
    name="certmill",
    help="A certificate authority server: issues from HSMs, answers OCSP in advance, publishes CRLs.",
    epilog="Everything is in one home directory: ./var, or where CERTMILL_HOME says. Settings are in its "
    "certmill.toml. Start with `certmill serve`; the guides are in docs/: operating.md for operators, clients.md "
    "for ministry systems. Exit codes: 0 done, 1 refused or found, 2 wrong usage, 75 not now: try again, "
    "78 mend a setting first.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, which may be secrets
)
_SERVE, _OPERATE, _CALL = "Serve", "Operate", "Call certmill, as a ministry system"
app.add_typer(client_app, name="client", rich_help_panel=_OPERATE)
app.add_typer(profile_app, name="profile", rich_help_panel=_OPERATE)
app.add_typer(db_app, name="db", rich_help_panel=_OPERATE)
app.add_typer(token_app, name="token", rich_help_panel=_OPERATE)
app.add_typer(batch_app, name="batch", rich_help_panel=_CALL)


@app.callback()
def private() -> None:
    """Keep what is written to its owner; what others may read is given its mode where it is written."""
    os.umask(0o077)


@app.command(rich_help_panel=_SERVE)
def serve() -> None:
    """Serve everything: the authority and the OCSP workers, started again when they end."""
    from server.cli import run_serve  # noqa: PLC0415 - of this process alone

    raise typer.Exit(run_serve.serve())


@app.command(rich_help_panel=_SERVE)
def init() -> None:
    """Make what serving needs (token, keys, CAs, database, certificates), once, and stop."""
    from server.cli import run_authority  # noqa: PLC0415 - of this process alone

    raise typer.Exit(run_authority.init())


@app.command(rich_help_panel=_SERVE)
def authority(
    pins_on_stdin: Annotated[
        bool, typer.Option("--pins-on-stdin", help="PINs of prompted tokens come as JSON: {token name: PIN}.")
    ] = False,
    supervised: Supervised = False,
) -> None:
    """Serve the authority alone: API, admin, issuing, revocation, CRLs (for systemd units of your own)."""
    from server.cli import run_authority  # noqa: PLC0415 - of this process alone

    raise typer.Exit(run_authority.authority(pins_on_stdin=pins_on_stdin, supervised=supervised))


@app.command(rich_help_panel=_SERVE)
def ocsp(
    number: Annotated[int, typer.Option(min=0, help="Tells workers of one home apart; from 0.")] = 0,
    supervised: Supervised = False,
) -> None:
    """Serve one OCSP worker alone: no key, no database, read-only on the response store."""
    from server.cli import run_ocsp  # noqa: PLC0415 - of this process alone

    raise typer.Exit(run_ocsp.ocsp(number=number, supervised=supervised))


@app.command(rich_help_panel=_OPERATE)
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


app.command("request", rich_help_panel=_CALL)(request)
