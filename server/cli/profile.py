"""`certmill profile …`: how the commands are called; profile_run.py and profile_replay.py do what they do."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The kinds of certificates: what they contain, and what a request for one may say.",
    no_args_is_help=True,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Which = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]|FILE", help="A profile, active or not any more; or a file.")
]


@app.command("list")
def list_profiles(*, as_json: AsJson = False) -> None:
    """Show the profiles that the next start activates, and where they come from."""
    from server.cli import profile_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(profile_run.list_profiles(as_json=as_json))


@app.command()
def lint(files: Annotated[list[Path], typer.Argument(metavar="FILE...")], *, as_json: AsJson = False) -> None:
    """Check files: what they say, and the certificates that come out. Exit code 0 only if all are right."""
    from server.cli import profile_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(profile_run.lint(files, as_json=as_json))


@app.command()
def show(which: Which, *, as_json: AsJson = False) -> None:
    """Print a profile: its file, or with --json what it says, with every default."""
    from server.cli import profile_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(profile_run.show(which, as_json=as_json))


@app.command()
def diff(before: Which, after: Which, *, as_json: AsJson = False) -> None:
    """Show what differs in meaning, key by key. Exit code 1 if anything does."""
    from server.cli import profile_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(profile_run.diff(before, after, as_json=as_json))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The changed profile, not active yet.")],
    *,
    since: Annotated[
        dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Requests since this day (UTC).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest so many.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each difference, and one at the end.")
    ] = False,
) -> None:
    """Run past requests through a changed profile and show every difference. Exit code 1 if there is any."""
    from server.cli import profile_replay  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(profile_replay.replay(file, since=since, limit=limit, as_json=as_json))
