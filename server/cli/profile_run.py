"""What `certmill profile list|lint|show|diff` do; they read files, and the database for versions of the past.

Each function returns the exit code: 1 when something is wrong or differs.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import typer
import uvloop
from rich.table import Table

from pkix.errors import ProfileError
from pkix.profile import Profile
from pkix.profile_file import parse_profile, plain
from server.cli.console import console_for
from server.cli.guard import guarded, read_config
from server.clock import from_epoch, utc_now
from server.errors import ConfigError, ServerError
from server.home import Home
from server.issuance.profile_files import ProfileFile, built_in_files, read_profile_file, read_profile_files
from server.issuance.profiles import ProfileRegistry, is_new
from server.issuance.samples import sample_certificate, sample_findings
from server.storage.database import AnyRow, Database
from server.storage.place import is_initialised, place_of

EXIT_DIFFERENT = 1
_DEEP = 2  # dots in subject.O.presence


def list_profiles(*, as_json: bool) -> int:
    """Print the profiles of the files, with what is recorded about them."""

    def work(home: Home) -> None:
        files = read_profile_files(home.profiles)
        recorded = {f"{row.name}@{row.version}": row.activated_at for row in _recorded()}
        rows = [_summary(file, recorded.get(file.profile.identity)) for file in files]
        if as_json:
            _print_json({"profiles": rows})
        else:
            console_for(sys.stdout).print(_table(rows))

    return _run(work)


def lint(paths: Sequence[Path], *, as_json: bool) -> int:
    """Check files one by one."""
    recorded = _digests()
    results = [_lint(path, recorded) for path in paths]
    wrong = sum(bool(findings) for _, _, findings in results)
    if as_json:
        _print_json(
            {"files": [{"file": str(path), "profile": identity, "findings": f} for path, identity, f in results]}
        )
        return EXIT_DIFFERENT if wrong else 0
    for path, identity, findings in results:
        for finding in findings:
            typer.echo(f"certmill: {finding}", err=True)
        if not findings:
            typer.echo(f"{path}: {identity} is right")
    return EXIT_DIFFERENT if wrong else 0


def show(which: str, *, as_json: bool) -> int:
    """Print one profile."""

    def work(home: Home) -> None:
        file = _find(home, which)
        if as_json:
            _print_json(plain(file.profile))
        else:
            sys.stdout.write(file.toml)

    return _run(work)


def diff(before: str, after: str, *, as_json: bool) -> int:
    """Print what two profiles say differently."""
    found = 0

    def work(home: Home) -> None:
        nonlocal found
        first, second = _find(home, before), _find(home, after)
        differences = differing(first.profile, second.profile)
        found = len(differences)
        if as_json:
            _print_json({"before": first.profile.identity, "after": second.profile.identity, "keys": differences})
        elif differences:
            console_for(sys.stdout).print(_differences(first.profile, second.profile, differences))
        else:
            typer.echo("no difference in meaning")

    return _run(work) or (EXIT_DIFFERENT if found else 0)


def differing(before: Profile, after: Profile) -> dict[str, list[object]]:
    """Return the keys that differ, each with the two values; null: there is no such key."""
    old, new = plain(before), plain(after)
    found: dict[str, list[object]] = {}
    for key in [*old, *(key for key in new if key not in old)]:
        # Of a whole attribute that one of them lacks, a line is enough.
        in_both = key in old and key in new
        if old.get(key) != new.get(key) and (in_both or key.count(".") < _DEEP or key.endswith(".presence")):
            found[key] = [old.get(key), new.get(key)]
    return found


def _run(work: Callable[[Home], None]) -> int:
    return guarded(lambda: work(Home(read_config().home)))


def _digests() -> dict[str, dict[int, bytes]]:
    """Return what was ever activated here; nothing, and a word about it, where the database is not there now."""
    digests: dict[str, dict[int, bytes]] = {}
    try:
        for row in _recorded():
            digests.setdefault(row.name, {})[row.version] = row.sha256
    except ServerError as error:
        typer.echo(f"certmill: versions are not compared with those that were active: {error}", err=True)
    return digests


def _lint(path: Path, recorded: Mapping[str, Mapping[int, bytes]]) -> tuple[Path, str | None, list[str]]:
    try:
        file = read_profile_file(path)
        is_new(file, recorded)  # what the start would say
    except ConfigError as error:
        return path, None, [str(error)]
    findings = sample_findings(file.profile) or _pkilint(file.profile)
    return path, file.profile.identity, [f"{path}: {finding}" for finding in findings]


def _pkilint(profile: Profile) -> list[str]:
    """Let the profile's linter look at the smallest and the fullest certificate."""
    if profile.linter == "none":
        return []
    from server.linting.exceptions import documented_exceptions  # noqa: PLC0415 - half a second
    from server.linting.linters import lint_now  # noqa: PLC0415

    exceptions, findings = documented_exceptions(), dict[str, None]()
    for full in (False, True):
        sample = sample_certificate(profile, full=full)
        der = sample.ca.sign(sample.prepared)
        found = lint_now(der, profile.linter, profile=profile.name, exceptions=exceptions)
        findings |= dict.fromkeys(f"{profile.linter}: {finding}" for finding in found)
    return list(findings)


def _recorded() -> list[AnyRow]:
    place = place_of(read_config())

    async def read() -> list[AnyRow]:
        async with Database(place) as database:
            return await ProfileRegistry(database, utc_now).recorded()

    return uvloop.run(read()) if is_initialised(place) else []


def _find(home: Home, which: str) -> ProfileFile:
    """Return a profile by file, name or name@version; raises `ConfigError`."""
    if which.endswith(".toml") or "/" in which:
        return read_profile_file(Path(which))
    files = [*read_profile_files(home.profiles), *built_in_files()]
    found = next((file for file in files if which in {file.profile.name, file.profile.identity}), None)
    if found is not None:
        return found
    rows = _recorded()
    row = next((row for row in rows if which == f"{row.name}@{row.version}"), None)
    if row is None:
        names = ", ".join(sorted({file.profile.name for file in files}))
        raise ConfigError(
            f"there is no profile {which[:80]!r}; use NAME, NAME@VERSION or a FILE; there are {names}"
        )
    try:
        return ProfileFile(profile=parse_profile(row.toml), toml=row.toml, origin="the database")
    except ProfileError as error:
        raise ConfigError(f"{which}: this certmill cannot read it: {error}") from None


def _summary(file: ProfileFile, activated_at: int | None) -> dict[str, object]:
    p = file.profile
    return {
        "profile": p.identity,
        "title": p.title,
        "family": p.family,
        "internal": p.internal,
        "days": p.validity.days,
        "days_today": p.longest(utc_now()).days,
        "maximum": p.maximum.value,
        "lint": p.lint,
        "linter": p.linter,
        "origin": file.origin,
        "activated_at": None if activated_at is None else from_epoch(activated_at).isoformat(),
    }


def _table(rows: Sequence[dict[str, object]]) -> Table:
    table = Table("profile", "family", "for", "days today", "linter", "from", "active since")
    for row in rows:
        table.add_row(
            str(row["profile"]),
            str(row["family"]),
            str(row["title"]),
            str(row["days_today"]),
            f"{row['linter']}, {row['lint']}",
            str(row["origin"]),
            str(row["activated_at"])[:10] if row["activated_at"] else "the next start",
        )
    return table


def _differences(before: Profile, after: Profile, differences: dict[str, list[object]]) -> Table:
    table = Table("key", before.identity, after.identity)
    for key, (old, new) in differences.items():
        table.add_row(key, *(msgspec.json.encode(value).decode() for value in (old, new)))
    return table


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
