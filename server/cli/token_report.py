"""What `certmill token …` found, as JSON for programs and as tables for people.

Values that come from a token or a settings file are shown as text alone: no markup, no control characters.
"""

import enum
import sys
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.console import console_for
from server.cli.token_source import Problem, ProblemKind

_SPKI_DIGITS = 16


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what `--json` prints."""


class KeyRow(Report, frozen=True, kw_only=True):
    """A key in a token, compared with those tokens that could be opened. `needed`: certmill signs with it."""

    name: str
    kind: str
    spki_sha256: str
    needed: bool
    same_on: list[str]
    lacking_on: list[str]
    differs_on: list[str]


class TokenRow(Report, frozen=True, kw_only=True):
    """A configured token. With a `problem` it could not be opened, and only the settings are known.

    `module` is empty and `slot` null for software keys. `missing_keys`: those that certmill needs.
    """

    name: str
    uri: str
    module: str
    lanes: int
    problem: Problem | None
    slot: int | None
    label: str
    manufacturer: str
    model: str
    serial: str
    hardware: str
    firmware: str
    algorithms: list[str]
    keys: list[KeyRow]
    missing_keys: list[str]
    notes: list[str]


class ListReport(Report, frozen=True, kw_only=True):
    """What `list` prints."""

    tokens: list[TokenRow]


class CheckName(enum.StrEnum):
    """What is checked."""

    OPEN = "open"
    SIGN = "sign"
    TOKENS = "tokens"  # the key is the same on all tokens
    CERTIFICATE = "certificate"  # the key is that of the certificate in the database


class Check(Report, frozen=True, kw_only=True):
    """One check; `text` says what was found, or what to do."""

    token: str
    key: str | None
    check: CheckName
    ok: bool
    problem: ProblemKind | None
    text: str


class CheckReport(Report, frozen=True, kw_only=True):
    """What `check` prints. `initialised`: the database has CA certificates to compare keys with."""

    ok: bool
    initialised: bool
    checks: list[Check]


class Rate(Report, frozen=True, kw_only=True):
    """Signatures a second with so many lanes, when each has two batches of this size in its pipe."""

    lanes: int
    batch: int
    signs_per_s: float


class KeyBenchmark(Report, frozen=True, kw_only=True):
    """The figures of one key of one token. `p50_ms`, `p99_ms`: of single signatures, one at a time on one lane."""

    token: str
    key: str
    algorithm: str
    p50_ms: float
    p99_ms: float
    rates: list[Rate]


class BenchmarkProblem(Report, frozen=True, kw_only=True):
    """What could not be measured, and why."""

    token: str
    key: str | None
    problem: ProblemKind
    text: str


class BenchmarkReport(Report, frozen=True, kw_only=True):
    """What `benchmark` prints. `serving`: a certmill served from this home meanwhile, with the same tokens."""

    serving: bool
    seconds: float
    results: list[KeyBenchmark]
    problems: list[BenchmarkProblem]


def print_json(report: Report) -> None:
    """Write the report to standard output."""
    console_for(sys.stdout).out(
        msgspec.json.format(msgspec.json.encode(report), indent=2).decode(), highlight=False
    )


def print_tokens(report: ListReport) -> None:
    """Write a table of tokens and a table of keys."""
    console = console_for(sys.stdout)
    console.print(_token_table(report.tokens), _key_table(report.tokens), sep="\n")
    for token in report.tokens:
        for note in token.notes:
            _line(console, ("note", "yellow"), token.name, "", note)


def print_checks(report: CheckReport) -> None:
    """Write one line for each check."""
    console = console_for(sys.stdout)
    token_columns = max((len(check.token) for check in report.checks), default=0)
    key_columns = max((len(check.key or "") for check in report.checks), default=0)
    for check in report.checks:
        verdict = ("ok", "green") if check.ok else ("FAIL", "bold red")
        token, key = check.token.ljust(token_columns), (check.key or "").ljust(key_columns)
        _line(console, verdict, token, key, check.text)


def print_benchmark(report: BenchmarkReport) -> None:
    """Write two tables of figures, and whatever could not be measured."""
    console = console_for(sys.stdout)
    if report.results:
        console.print(_rate_table(report.results), _latency_table(report.results), sep="\n")
    for problem in report.problems:
        _line(console, ("FAIL", "bold red"), problem.token, problem.key or "", problem.text)


def progress_console() -> Console:
    """Return where progress is shown: standard error, and only on a terminal."""
    return console_for(sys.stderr)


def _line(console: Console, verdict: tuple[str, str], token: str, key: str, text: str) -> None:
    word, style = verdict
    line = Text.assemble((f"{word:<5}", style), *(f" {_printable(part)}" for part in (token, key, text) if part))
    console.print(line, soft_wrap=True)


def _token_table(tokens: Sequence[TokenRow]) -> Table:
    table = _table("token", "property", "value")
    for token in tokens:
        name = token.name
        for what, value in _facts(token):
            style = "bold red" if what == "problem" else ""
            table.add_row(_cell(name), _cell(what), _cell(value, style))
            name = ""
        table.add_section()
    return table


def _facts(token: TokenRow) -> Iterable[tuple[str, str]]:
    yield "URI", token.uri
    if token.module:
        yield "module", token.module
    yield "label", token.label
    yield "lanes", str(token.lanes)
    if token.problem is not None:
        yield "problem", token.problem.text
        return
    if token.slot is not None:
        yield "slot", str(token.slot)
    yield "manufacturer", token.manufacturer
    yield "model", token.model
    yield "serial", token.serial
    if token.hardware or token.firmware:
        yield "hardware, firmware", f"{token.hardware}, {token.firmware}"
    yield "algorithms", ", ".join(token.algorithms)


def _key_table(tokens: Sequence[TokenRow]) -> Table:
    table = _table("token", "key", "kind", "SPKI SHA-256", "on the other tokens")
    for token in tokens:
        for key in token.keys:
            bad = "red" if key.differs_on or (key.needed and key.lacking_on) else ""
            fingerprint = key.spki_sha256[:_SPKI_DIGITS]
            table.add_row(*map(_cell, (token.name, key.name, key.kind, fingerprint)), _cell(_relation(key), bad))
        for name in token.missing_keys:
            table.add_row(_cell(token.name), _cell(name), _cell("missing", "red"))
        table.add_section()
    return table


def _relation(key: KeyRow) -> str:
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (
            ("same on", key.same_on),
            ("lacking on", key.lacking_on),
            ("differs on", key.differs_on),
        )
        if names
    ]
    return "; ".join(parts) or "-"


def _rate_table(results: Sequence[KeyBenchmark]) -> Table:
    batches = sorted({rate.batch for result in results for rate in result.rates})
    table = _table("token", "key", "lanes", *(f"batch {batch}" for batch in batches), title="signatures a second")
    for column in table.columns[2:]:
        column.justify = "right"
    for result in results:
        for lanes in sorted({rate.lanes for rate in result.rates}):
            found = {rate.batch: f"{rate.signs_per_s:,.0f}" for rate in result.rates if rate.lanes == lanes}
            figures = [found.get(batch, "-") for batch in batches]
            table.add_row(*map(_cell, [result.token, result.key, str(lanes), *figures]))
        table.add_section()
    return table


def _latency_table(results: Sequence[KeyBenchmark]) -> Table:
    table = _table("token", "key", "algorithm", "p50", "p99", title="single signatures, one after the other")
    for result in results:
        figures = f"{result.p50_ms:.2f} ms", f"{result.p99_ms:.2f} ms"
        table.add_row(*map(_cell, (result.token, result.key, result.algorithm, *figures)))
    return table


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, header_style="bold")
    for column in columns:
        table.add_column(_cell(column), overflow="fold")
    return table


def _cell(text: str, style: str = "") -> Text:
    return Text(_printable(text), style=style)


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
