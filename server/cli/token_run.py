"""What `certmill token list|check|benchmark` do: look at the tokens as serving does, and change nothing.

Each returns the exit code.

They take no lock and make no file, so that they work while certmill serves. Sessions of their own: each token gets
one login, and a PIN that it refuses is not tried again.
"""

from collections.abc import Callable, Sequence

import typer
import uvloop
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from structlog.typing import FilteringBoundLogger

from server.cli.token_benchmark import Plan, TokenBenchmark
from server.cli.token_inspection import Inspection, inspect
from server.cli.token_report import (
    BenchmarkReport,
    CheckReport,
    ListReport,
    print_benchmark,
    print_checks,
    print_json,
    print_tokens,
    progress_console,
)
from server.cli.token_source import TokenSource, is_serving, token_sources
from server.cli.token_verdict import inventory, judge
from server.config import Config, environment, load_config
from server.errors import ConfigError, ServerError
from server.home import Home
from server.keys.certified import expected_keys
from server.keys.hierarchy import ISSUING, OCSP, ROOT
from server.keys.pin import ask_on_terminal
from server.logs import make_logger
from server.storage.place import is_initialised, no_database, place_of
from server.supervisor import EXIT_CONFIG
from signer_pool.errors import SignerPoolError

EXIT_FOUND = 1
_KEYS = (ROOT, ISSUING, OCSP)
_BATCHES = (1, 8, 64)
_REFRESHES_PER_S = 4  # drawing takes time from what is measured


def list_tokens(*, as_json: bool) -> int:
    """Print every configured token and its keys."""

    def work() -> int:
        config, sources = _sources()
        inspections = _inspect(config, sources, ())
        report = ListReport(tokens=inventory(inspections, _wanted(config)))
        (print_json if as_json else print_tokens)(report)
        return EXIT_FOUND if any(token.problem for token in report.tokens) else 0

    return _guarded(work)


def check(*, as_json: bool) -> int:
    """Sign probes, compare keys, print what was found."""

    def work() -> int:
        config, sources = _sources()
        certified = expected_keys(Home(config.home), place_of(config), issuer=ISSUING, responder=OCSP)
        inspections = _inspect(config, sources, _KEYS)
        checks = judge(inspections, _wanted(config), certified)
        report = CheckReport(ok=all(one.ok for one in checks), initialised=bool(certified), checks=checks)
        (print_json if as_json else print_checks)(report)
        return 0 if report.ok else EXIT_FOUND

    return _guarded(work)


def benchmark(
    *, keys: list[str] | None, lanes: int | None, batches: list[int] | None, seconds: float, as_json: bool
) -> int:
    """Measure and print signatures a second."""

    def work() -> int:
        config, sources = _sources()
        plan = Plan(
            keys=list(dict.fromkeys(keys or (ISSUING, OCSP))),
            lanes=lanes,
            batches=sorted(set(batches or _BATCHES)),
            seconds=seconds,
            deadline_s=config.signer.batch_deadline_s,
        )
        serving = is_serving(Home(config.home))
        typer.echo(_sharing(serving=serving), err=True)
        report = _benchmark(sources, plan, serving=serving)
        (print_json if as_json else print_benchmark)(report)
        return EXIT_FOUND if report.problems else 0

    return _guarded(work)


def _sources() -> tuple[Config, list[TokenSource]]:
    config = load_config(environment())
    home = Home(config.home)
    sources = token_sources(config, environment(), ask_on_terminal, _logger(config))
    place = place_of(config)
    if not is_initialised(place):
        typer.echo(f"certmill: {no_database(home, place)}", err=True)
    return config, sources


def _logger(config: Config) -> FilteringBoundLogger:
    return make_logger(config.log, process="token")


def _wanted(config: Config) -> dict[str, str]:
    return {name: getattr(config.keys, name) for name in _KEYS}


def _inspect(config: Config, sources: Sequence[TokenSource], sign: Sequence[str]) -> list[Inspection]:
    async def work() -> list[Inspection]:
        return [await inspect(source, sign=sign, deadline_s=config.signer.batch_deadline_s) for source in sources]

    return uvloop.run(work())


def _sharing(*, serving: bool) -> str:
    if serving:
        return "certmill serves from this home: it shares the HSMs with this benchmark, which shows in both"
    return "Whatever else uses the HSMs meanwhile shares them with this benchmark."


def _benchmark(sources: Sequence[TokenSource], plan: Plan, *, serving: bool) -> BenchmarkReport:
    console = progress_console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        refresh_per_second=_REFRESHES_PER_S,
    ) as progress:
        task = progress.add_task("", total=sum(map(plan.steps, sources)))
        benchmarks = [
            TokenBenchmark(source=source, plan=plan, on_step=lambda: progress.advance(task)) for source in sources
        ]

        async def work() -> None:
            for one in benchmarks:
                progress.update(task, description=one.source.name)
                await one.run()

        uvloop.run(work())
    return BenchmarkReport(
        serving=serving,
        seconds=plan.seconds,
        results=[result for one in benchmarks for result in one.results.values()],
        problems=[problem for one in benchmarks for problem in one.problems],
    )


def _guarded(work: Callable[[], int]) -> int:
    """Run; an error that concerns all tokens becomes one line and exit code 78 (settings) or 1, no traceback."""
    try:
        return work()
    except (ServerError, SignerPoolError) as error:
        typer.echo(f"certmill: {error}", err=True)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_FOUND
