"""What `certmill db …` does. Each function returns the exit code.

1 when something was found, or what was asked for cannot be done; 75 and 78 as everywhere.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from server.cli.console import console_for
from server.cli.guard import guarded, read_config
from server.config import Config
from server.errors import ConfigError, RequestRefused
from server.home import Home, exclusive
from server.storage.backup import OnProgress, back_up
from server.storage.check import Finding, check_database
from server.storage.migrate import head, revision
from server.storage.migrate import upgrade as migrate
from server.storage.place import Place, is_initialised, no_database, place_of
from server.storage.restore import restore as put_back

EXIT_FOUND = 1


def upgrade(*, as_json: bool) -> int:
    """Bring the database to this version's schema."""

    def work(config: Config, place: Place) -> int:
        _require_initialised(config, place)
        Home(config.home).create()
        with exclusive(Home(config.home)):
            before = revision(place)
            migrate(place)
        if as_json:
            _print_json({"database": str(place), "from": before, "to": head()})
        else:
            done = "has the schema of this version" if before == head() else f"was brought from schema {before}"
            typer.echo(f"{place} {done}: {head()}")
        return 0

    return _run(work)


def check(*, as_json: bool) -> int:
    """Print what every check found."""

    def work(config: Config, place: Place) -> int:
        _require_initialised(config, place)
        with _progress("certificates") as on_progress:
            findings = check_database(place, config.response_store, on_progress)
        ok = all(finding.ok for finding in findings)
        if as_json:
            _print_json({"ok": ok, "database": str(place), "checks": findings})
        else:
            console_for(sys.stdout).print(_table(findings))
        return 0 if ok else EXIT_FOUND

    return _run(work)


def backup(file: Path, *, as_json: bool) -> int:
    """Write a backup."""

    def work(config: Config, place: Place) -> int:
        _require_initialised(config, place)
        with _progress("backup") as on_progress:
            done = back_up(place, file, on_progress)
        if as_json:
            _print_json(done)
        else:
            typer.echo(f"{done.file}: {done.certificates} certificates, {done.size} bytes, SHA-256 {done.sha256}")
        return 0

    return _run(work)


def restore(file: Path, crls: list[Path], *, overwrite: bool, as_json: bool) -> int:
    """Make a backup the database."""

    def work(config: Config, place: Place) -> int:
        with _progress("restore") as on_progress:
            done = put_back(config, place, file, crls, on_progress, overwrite=overwrite)
        if as_json:
            _print_json(done)
            return 0
        typer.echo(f"{done.database}: restored, {done.certificates} certificates")
        if done.kept:
            typer.echo(f"what was there before is kept: {done.kept}")
        if done.revoked_again:
            typer.echo(f"revoked again by published CRLs: {done.revoked_again}, of them unknown: {done.lost}")
        typer.echo("start certmill, then look for what the backup does not know: certmill db check")
        return 0

    return _run(work)


def _run(work: Callable[[Config, Place], int]) -> int:
    """Do it; what the operator can mend becomes one line."""
    code = 0

    def main() -> None:
        nonlocal code
        config = read_config()
        try:
            code = work(config, place_of(config))
        except RequestRefused as error:
            where = f"{error.field}: " if error.field else ""
            typer.echo(f"certmill: {where}{error.detail}; {error.remedy}", err=True)
            code = EXIT_FOUND

    return guarded(main) or code


def _require_initialised(config: Config, place: Place) -> None:
    if not is_initialised(place):
        raise ConfigError(no_database(Home(config.home), place))


@contextmanager
def _progress(what: str) -> Iterator[OnProgress]:
    """Show a bar on a terminal."""
    console = console_for(sys.stderr)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(findings: list[Finding]) -> Table:
    table = Table("check", "result", "count", "what it looks for", "for example")
    for one in findings:
        examples = ", ".join(one.examples) if not one.ok else ""
        table.add_row(one.check, "ok" if one.ok else "FOUND", str(one.count), one.detail, examples)
    return table


def _print_json(report: Any) -> None:  # noqa: ANN401 - whatever msgspec can write
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
