"""`certmill batch …`: how the commands are called; batch_run.py does what they do."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from server.cli.connection import AsJson, Ca, Certificate, Connection, Key, Url

app = typer.Typer(
    help="Many certificates at once: hand in a file, follow it, fetch the results.", no_args_is_help=True
)
Id = Annotated[str, typer.Argument(metavar="ID", help="The batch's id, as `submit` and `list` print it.")]


class Rows(enum.StrEnum):
    """What a batch is written in."""

    CSV = "csv"
    NDJSON = "ndjson"
    JSON = "json"


class Results(enum.StrEnum):
    """What results are written in."""

    ZIP = "zip"
    CSV = "csv"
    NDJSON = "ndjson"


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One row for each certificate.")],
    *,
    profile: Annotated[str, typer.Option(help="For rows that name none.")],
    rows: Annotated[Rows | None, typer.Option("--format", help="If FILE's name does not tell.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row, issue nothing.")] = False,
    validity_days: Annotated[int | None, typer.Option(min=1, help="Shortens the profile's validity.")] = None,
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it has ended.")] = False,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Hand in a batch. Safe to run again after whatever happened: there is one batch."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    wanted = batch_run.Wanted(
        file=file, profile=profile, format=rows and rows.value, dry_run=dry_run, validity_days=validity_days
    )
    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.submit(connection, wanted, watch_it=watch_it, as_json=as_json))


@app.command()
def watch(
    batch: Id,
    *,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Follow a batch until it has ended; exit code 1 if it, or a row of it, failed."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.watch(connection, batch, as_json=as_json))


@app.command()
def fetch(
    batch: Id,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="This file, whole or not at all.")],
    results: Annotated[Results, typer.Option("--format", help="What it is written in.")] = Results.ZIP,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Fetch what came of each row: certificates, or why there is none."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.fetch(connection, batch, results.value, out, as_json=as_json))


@app.command("list")
def list_batches(
    *,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Show your batches, newest first."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.list_batches(connection, as_json=as_json))


@app.command()
def pause(
    batch: Id,
    *,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Stop after the rows that are on their way, until `resume`."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.steer(connection, batch, "pause", as_json=as_json))


@app.command()
def resume(
    batch: Id,
    *,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a batch that was paused."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.steer(connection, batch, "resume", as_json=as_json))


@app.command()
def cancel(
    batch: Id,
    *,
    url: Url = None,
    client_certificate: Certificate = None,
    client_key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """End a batch; what was issued stays issued."""
    from server.cli import batch_run  # noqa: PLC0415 - only this command needs it

    connection = Connection(url=url, certificate=client_certificate, key=client_key, ca=ca)
    raise typer.Exit(batch_run.steer(connection, batch, "cancel", as_json=as_json))
