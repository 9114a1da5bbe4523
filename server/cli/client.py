"""`certmill client …`: how the commands are called; client_run.py does what they do."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The ministry systems that may ask for certificates: who they are and what they may ask for.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The client's name: a-z, 0-9, . _ -")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Certificate = Annotated[
    Path,
    typer.Option(help="PEM file with the client's certificate, CSR or public key: it is known by this key."),
]
Profiles = Annotated[
    list[str] | None, typer.Option("--profile", help="A profile that it may ask for, or *; repeat for more.")
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", help="A DNS name (and all below it) or IP address that it may ask for, or *."),
]


@app.command()
def add(name: Name, *, certificate: Certificate, profile: Profiles = None, names: Names = None) -> None:
    """Add a client. It calls with a certificate of this CA for the key in the file."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.add(name, certificate, profile or [], names or []))


@app.command("list")
def list_clients(*, as_json: AsJson = False) -> None:
    """Show every client, what it may ask for and how many of its certificates are live."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.list_clients(as_json=as_json))


@app.command()
def limit(name: Name, *, profile: Profiles = None, names: Names = None) -> None:
    """Replace the profiles, or the names, that a client may ask for."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.limit(name, profile, names))


@app.command()
def pin(name: Name, *, certificate: Certificate) -> None:
    """Know a client by another key from now on."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.pin(name, certificate))


@app.command()
def disable(name: Name) -> None:
    """Refuse a client from now on. Its certificates stay as they are."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.disable(name, disabled=True))


@app.command()
def enable(name: Name) -> None:
    """Accept a client again."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.disable(name, disabled=False))
