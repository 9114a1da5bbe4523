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


Organizations = Annotated[
    list[str] | None,
    typer.Option("--organization", help="An organisation (O) that it may ask for, whole, or *."),
]
Identifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--identifier",
        help="An organizationIdentifier, serialNumber or UID that it may ask for, or the beginning of one and *.",
    ),
]
Quota = Annotated[
    str | None, typer.Option(help="Certificates in a calendar year (UTC), or unlimited.", metavar="N")
]
Rate = Annotated[str | None, typer.Option(help="Requests in a minute, or unlimited.", metavar="N")]


@app.command()
def add(
    name: Name,
    *,
    certificate: Certificate,
    profile: Profiles = None,
    names: Names = None,
    organization: Organizations = None,
    identifier: Identifiers = None,
    quota: Quota = None,
    rate: Rate = None,
) -> None:
    """Add a client. It calls with a certificate of this CA for the key in the file.

    It may ask for what is given here, else for nothing; without quota and rate there is no limit.
    """
    from server.auth.limits import Limits  # noqa: PLC0415 - only this command needs it
    from server.cli import client_run  # noqa: PLC0415

    limits = Limits(
        profiles=profile, names=names, organizations=organization, identifiers=identifier, quota=quota, rate=rate
    )
    raise typer.Exit(client_run.add(name, certificate, limits))


@app.command("list")
def list_clients(*, as_json: AsJson = False) -> None:
    """Show every client, its limits, what it used this year and how many of its certificates are live."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.list_clients(as_json=as_json))


@app.command()
def show(name: Name, *, as_json: AsJson = False) -> None:
    """Show one client: its limits, what it used, what expires, and the forecast for the year."""
    from server.cli import client_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(client_run.show(name, as_json=as_json))


@app.command()
def limit(
    name: Name,
    *,
    profile: Profiles = None,
    names: Names = None,
    organization: Organizations = None,
    identifier: Identifiers = None,
    quota: Quota = None,
    rate: Rate = None,
) -> None:
    """Replace the limits that are given; an empty text ("") leaves none of a kind."""
    from server.auth.limits import Limits  # noqa: PLC0415 - only this command needs it
    from server.cli import client_run  # noqa: PLC0415

    limits = Limits(
        profiles=profile, names=names, organizations=organization, identifiers=identifier, quota=quota, rate=rate
    )
    raise typer.Exit(client_run.limit(name, limits))


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
