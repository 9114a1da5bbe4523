"""`certmill db …`: how the commands are called; db_run.py does what they do."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The database: bring it to this version's schema, check it, back it up, restore it.", no_args_is_help=True
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command()
def upgrade(*, as_json: AsJson = False) -> None:
    """Bring the database to the schema of this version, as a start does, and stop."""
    from server.cli import db_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(db_run.upgrade(as_json=as_json))


@app.command()
def check(*, as_json: AsJson = False) -> None:
    """Look whether everything is there that must be. Changes nothing; also while certmill serves."""
    from server.cli import db_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(db_run.check(as_json=as_json))


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup; must not be there yet.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Write one consistent moment of the database into a file, also while certmill serves."""
    from server.cli import db_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(db_run.backup(file, as_json=as_json))


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `certmill db backup` wrote.")],
    *,
    crl: Annotated[
        list[Path] | None,
        typer.Option(help="A published CRL (DER): what it revokes stays revoked. The home's own are read too."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also if there is a database: what only that one knows is lost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a backup the database of this home; every authority on it is stopped."""
    from server.cli import db_run  # noqa: PLC0415 - only this command needs it

    raise typer.Exit(db_run.restore(file, crl or [], overwrite=overwrite, as_json=as_json))
