"""`make crash`: the authority is killed at every numbered step and between fsyncs, under load; nothing is lost.

After each death another process is started on the same home, every call without an answer is repeated with its
idempotency key, and then everything that was ever acknowledged is looked for: its row, its audit entries, its OCSP
answer, its place in the CRL. Nothing may be doubled, and nothing signed that no row records. Exits with 1 if
anything is wrong, with 2 if this machine does not let strace trace.
"""

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from loadtests.crash_site import EIO, CannotTrace, Crash, CrashSite, Outcome
from server.milestones import Step
from tests.support.postgres import postgres_server

FSYNCS = 8
_LATEST = {"issue": 12, "abandon": 3, "revoke": 6, "answer": 6, "crl": 3, "batch": 1}
"""At which passing a step under load kills, at the latest."""
_AT_START = ("recover.*", "crl.*", "answer.*")
_RESULTS = Path("build/crash")


def plan(patterns: Sequence[str], fsyncs: int, dice: random.Random, *, on_sqlite: bool) -> Iterator[Crash]:
    """Name every crash of one run: each step under load, what happens at a start there too, fsyncs."""
    for step in Step:
        if not any(fnmatch(step, pattern) for pattern in patterns):
            continue
        if not step.startswith("recover."):
            yield Crash(step=step, nth=dice.randint(1, _LATEST[step.partition(".")[0]]))
        if any(fnmatch(step, pattern) for pattern in _AT_START):
            yield Crash(step=step, nth=1, at_start=True)
    if any(fnmatch("fsync", pattern) for pattern in patterns):
        yield from (Crash(step=None, nth=nth) for nth in range(1, fsyncs + 1))
    if any(fnmatch("eio", pattern) for pattern in patterns) and on_sqlite:
        # PostgreSQL has files of its own, and panics by itself.
        yield from (Crash(step=None, nth=nth, fault=EIO) for nth in (1, 2, 7))
        yield Crash(step=None, nth=1, fault=EIO, file="certmill.sqlite")  # in a checkpoint


def crash_all(
    directory: Path, crashes: Sequence[Crash], settings: Mapping[str, str], url: str | None
) -> Iterator[Outcome]:
    """Make one home in `directory` and let it crash in all of these ways, one after the other."""
    site = CrashSite(directory, settings, url)
    site.prepare()
    for crash in crashes:
        yield site.crash(crash)


@contextmanager
def _databases(named: str) -> Iterator[Iterator[str | None]]:
    """Give the URL of an empty database for every run; None is the file of the home."""
    if named == "sqlite":
        yield itertools.repeat(None)
    elif named == "postgresql":
        with postgres_server() as server:
            yield (server.url(server.empty_database()) for _ in itertools.count())
    else:
        yield iter([named])


def _tell(outcomes: Sequence[Outcome], title: str, console: Console) -> None:
    table = Table(title=title)
    table.add_column("killed at", no_wrap=True)
    for name in ("nth", "issued", "revoked", "again", "wrong", "s"):
        table.add_column(name, justify="right")
    for o in outcomes:
        table.add_row(
            o.crash.name,
            str(o.crash.nth),
            str(o.acknowledged),
            str(o.revoked),
            str(o.open_calls),
            str(len(o.wrong)),
            f"{o.seconds:.1f}",
        )
    console.print(table)
    for o in outcomes:
        for sentence in o.wrong[:10]:
            console.print(f"WRONG at {o.crash.name}: {sentence}", style="bold red", highlight=False, markup=False)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="how often, each with a home of its own")
    parser.add_argument(
        "--steps", nargs="+", default=["*"], metavar="PATTERN", help="such as 'issue.*' or 'fsync'"
    )
    parser.add_argument("--fsyncs", type=int, default=FSYNCS, help="kill as the 1st to this one is entered")
    parser.add_argument(
        "--database", default="sqlite", help="sqlite, postgresql (its own), or the URL of an empty one"
    )
    parser.add_argument("--signer", choices=["software", "pkcs11"], default="pkcs11", help="default: %(default)s")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000_000, help="of the passings (default: new)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the bar and the tables")
    return parser.parse_args()


def main() -> None:
    """Crash and tell."""
    arguments = _arguments()
    console = Console(stderr=arguments.json)
    dice = random.Random(arguments.seed)
    on_sqlite = arguments.database == "sqlite"
    runs = [
        list(plan(arguments.steps, arguments.fsyncs, dice, on_sqlite=on_sqlite)) for _ in range(arguments.runs)
    ]
    if not runs or not runs[0]:
        raise SystemExit(
            f"--steps: nothing is called {' '.join(arguments.steps)}; steps: {', '.join(Step)}, fsync, eio"
        )
    if arguments.runs > 1 and arguments.database not in {"sqlite", "postgresql"}:
        raise SystemExit("--runs: each run needs an empty database; with a URL there is one")
    try:
        outcomes = _run_all(runs, arguments, console)
    except CannotTrace as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    sys.exit(_report(outcomes, arguments, console))


def _run_all(runs: Sequence[list[Crash]], arguments: argparse.Namespace, console: Console) -> list[Outcome]:
    """Crash, with a bar, and tell of each run as it ends."""
    outcomes: list[Outcome] = []
    _result(arguments.database, "jsonl").unlink(missing_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    settings = {"CERTMILL_SIGNER_KIND": arguments.signer}
    with (
        Progress(*columns, console=console, disable=arguments.json) as bar,
        _databases(arguments.database) as databases,
    ):
        task = bar.add_task("", total=sum(map(len, runs)))
        for number, (crashes, url) in enumerate(zip(runs, databases, strict=False), 1):
            run: list[Outcome] = []
            with tempfile.TemporaryDirectory(prefix="certmill-crash-") as directory:
                for outcome in crash_all(Path(directory), crashes, settings, url):
                    run.append(outcome)
                    _keep(outcome, arguments.database)
                    bar.update(task, advance=1, description=outcome.crash.name)
            _tell(run, f"{arguments.database}, run {number} of {len(runs)}, --seed {arguments.seed}", console)
            outcomes += run
    return outcomes


def _keep(outcome: Outcome, database: str) -> None:
    """Write an outcome down as soon as it is there: a run that is broken off was not for nothing."""
    found = {
        "at": outcome.crash.name,
        "nth": outcome.crash.nth,
        "acknowledged": outcome.acknowledged,
        "revoked": outcome.revoked,
        "repeated": outcome.open_calls,
        "seconds": round(outcome.seconds, 1),
        "wrong": outcome.wrong,
    }
    with _result(database, "jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


def _result(database: str, ending: str) -> Path:
    _RESULTS.mkdir(parents=True, exist_ok=True)
    return _RESULTS / f"{'url' if '/' in database else database}.{ending}"


def _report(outcomes: Sequence[Outcome], arguments: argparse.Namespace, console: Console) -> int:
    wrong = sum(len(o.wrong) for o in outcomes)
    details = {
        "database": arguments.database,
        "seed": arguments.seed,
        "crashes": len(outcomes),
        "acknowledged": sum(o.acknowledged for o in outcomes),
        "revoked": sum(o.revoked for o in outcomes),
        "repeated": sum(o.open_calls for o in outcomes),
        "seconds": round(sum(o.seconds for o in outcomes), 1),
        "wrong": [{"at": o.crash.name, "nth": o.crash.nth, "what": w} for o in outcomes for w in o.wrong],
    }
    _result(arguments.database, "json").write_text(json.dumps(details, indent=2) + "\n", "utf-8")
    if arguments.json:
        sys.stdout.write(json.dumps(details) + "\n")
    else:
        console.print(
            f"{details['crashes']} crashes, {details['acknowledged']} certificates and {details['revoked']} "
            f"revocations acknowledged, {details['repeated']} calls repeated, {details['seconds']} s"
        )
        console.print("FAILED" if wrong else "no ghost, no loss, no double", style="bold")
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
