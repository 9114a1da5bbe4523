"""What `certmill batch …` does. Each function returns the exit code."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from client.api import CertmillClient
from client.batches import TYPES
from client.errors import CertmillError
from client.messages import Batch, BatchAct, ResultFormat
from server.cli.calling import EXIT_REFUSED, print_json, run, tell
from server.cli.connection import Connection
from server.cli.console import console_for
from server.cli.pending import Pending, PendingFile
from server.errors import RequestRefused

_SUFFIXES = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json"}
_SHARES = 20  # without a terminal, a line for each such part of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is handed in."""

    file: Path
    profile: str
    format: str | None
    dry_run: bool
    validity_days: int | None


def submit(connection: Connection, wanted: Wanted, *, watch_it: bool, as_json: bool) -> int:
    """Hand a file in, once, however often it is tried."""

    def work(certmill: CertmillClient) -> int:
        batch = _submit(certmill, wanted)
        if watch_it:
            return _follow(certmill.watch(batch.id), as_json=as_json)
        _show(batch, as_json=as_json)
        if not as_json:
            tell(f"it goes on by itself; follow it: certmill batch watch {batch.id}")
        return 0

    return run(connection, work, as_json=as_json)


def watch(connection: Connection, batch_id: str, *, as_json: bool) -> int:
    """Show how a batch goes on until it has ended."""
    return run(connection, lambda certmill: _follow(certmill.watch(batch_id), as_json=as_json), as_json=as_json)


def fetch(connection: Connection, batch_id: str, format: ResultFormat, out: Path, *, as_json: bool) -> int:
    """Write the results to a file."""

    def work(certmill: CertmillClient) -> int:
        certmill.results(batch_id, format, out)
        if as_json:
            print_json({"file": str(out), "bytes": out.stat().st_size})
        else:
            console_for(sys.stdout).print(f"{out}: the results of batch {batch_id}")
        return 0

    return run(connection, work, as_json=as_json)


def list_batches(connection: Connection, *, as_json: bool) -> int:
    """Print all batches of the client."""

    def work(certmill: CertmillClient) -> int:
        batches = list(certmill.batches())
        if as_json:
            print_json({"batches": batches})
        else:
            console_for(sys.stdout).print(_table(batches))
        return 0

    return run(connection, work, as_json=as_json)


def steer(connection: Connection, batch_id: str, act: BatchAct, *, as_json: bool) -> int:
    """Pause, resume or cancel a batch."""

    def work(certmill: CertmillClient) -> int:
        _show(certmill.steer_batch(batch_id, act), as_json=as_json)
        return 0

    return run(connection, work, as_json=as_json)


def _submit(certmill: CertmillClient, wanted: Wanted) -> Batch:
    form = wanted.format or _SUFFIXES.get(wanted.file.suffix.lower())
    if form is None:
        raise RequestRefused(
            f"{wanted.file.name} does not tell what it is written in",
            field="--format",
            remedy=f"say {', '.join(TYPES)}; a spreadsheet's workbook is saved as 'CSV UTF-8' first",
        )
    with wanted.file.open("rb") as rows:
        digest = hashlib.file_digest(rows, "sha256").hexdigest()
        rows.seek(0)
        asked: dict[str, object] = {
            "rows_sha256": digest,
            "profile": wanted.profile,
            "format": form,
            "dry_run": wanted.dry_run,
            "validity_days": wanted.validity_days,
        }
        kept = PendingFile(wanted.file.with_name(wanted.file.name + ".pending"))
        pending = kept.claim(asked, lambda: Pending(asked=asked))
        try:
            batch = certmill.submit_batch(
                rows,
                form,
                wanted.profile,
                dry_run=wanted.dry_run,
                validity_days=wanted.validity_days,
                idempotency_key=pending.idempotency_key,
            )
        except CertmillError as error:
            kept.failed(error)
            raise
        kept.done()
        return batch


def _follow(states: Iterable[Batch], *, as_json: bool) -> int:
    """Show each state: JSON lines, a bar on a terminal, or a line now and then; return the exit code."""
    console = console_for(sys.stderr)
    if as_json:
        last = _each(states, print_json)
    elif console.is_terminal:
        last = _bar(states)
    else:
        last = _lines(states)
    if not as_json:
        _show(last, as_json=False)
        tell(f"what became of each row: certmill batch fetch {last.id} --format csv -o FILE")
    return 0 if last.state == "done" and not last.failed else EXIT_REFUSED


def _each(states: Iterable[Batch], show: Callable[[Batch], None]) -> Batch:
    last: Batch | None = None
    for last in states:
        show(last)
    assert last is not None  # noqa: S101 - `watch` gives the present state before anything else
    return last


def _bar(states: Iterable[Batch]) -> Batch:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console_for(sys.stderr)) as progress:
        task = progress.add_task("", total=None)

        def show(batch: Batch) -> None:
            failed = f", {batch.failed} failed" if batch.failed else ""
            done = batch.rows - batch.pending
            progress.update(task, description=f"{batch.state}{failed}", completed=done, total=batch.rows or None)

        return _each(states, show)


def _lines(states: Iterable[Batch]) -> Batch:
    told: tuple[str, int] | None = None

    def show(batch: Batch) -> None:
        nonlocal told
        share = (batch.rows - batch.pending) * _SHARES // max(1, batch.rows)
        if told != (batch.state, share) and not batch.ended:
            told = batch.state, share
            _show(batch, as_json=False, stream=sys.stderr)

    return _each(states, show)


def _show(batch: Batch, *, as_json: bool, stream: TextIO | None = None) -> None:
    if as_json:
        print_json(batch)
        return
    counts = [
        ("issued", batch.issued),
        ("checked", batch.checked),
        ("failed", batch.failed),
        ("pending", batch.pending),
    ]
    told = ", ".join(f"{count} {name}" for name, count in counts if count)
    parts = [f"batch {batch.id} is {batch.state}: {batch.rows} rows", told, batch.detail or ""]
    console_for(stream or sys.stdout).print("; ".join(part for part in parts if part), soft_wrap=True)


def _table(batches: Iterable[Batch]) -> Table:
    table = Table("batch", "profile", "state", "rows", "issued", "checked", "failed", "pending", "since")
    for one in batches:
        counts = (str(count) for count in (one.rows, one.issued, one.checked, one.failed, one.pending))
        since = one.created_at.strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(one.id, one.profile, f"{one.state}{' (dry run)' if one.dry_run else ''}", *counts, since)
    return table
