"""What `certmill profile replay` does: it only reads, also while certmill serves."""

import datetime as dt
import sys
from collections import Counter
from pathlib import Path

import msgspec
import uvloop
from cryptography import x509
from rich.progress import Progress
from sqlalchemy import select

from pkix.profile import Profile
from server.cli.console import console_for
from server.cli.guard import guarded, read_config
from server.cli.profile_run import EXIT_DIFFERENT
from server.clock import epoch, utc_now
from server.config import Config
from server.errors import ConfigError
from server.home import Home
from server.issuance.profile_files import read_profile_file
from server.issuance.profiles import ProfileRegistry
from server.issuance.replay import Difference, Replay
from server.keys.described import describe_issuer
from server.keys.hierarchy import ISSUING
from server.storage.database import Database
from server.storage.place import is_initialised, no_database, place_of
from server.storage.schema import issuers


def replay(file: Path, *, since: dt.datetime | None, limit: int | None, as_json: bool) -> int:
    """Print every difference, and how many there are."""
    differences = 0

    def work() -> None:
        nonlocal differences
        config = read_config()
        profile = read_profile_file(file).profile
        place = place_of(config)
        if not is_initialised(place):
            raise ConfigError(no_database(Home(config.home), place))
        begin = 0 if since is None else epoch(since.replace(tzinfo=dt.UTC))
        counts = uvloop.run(_replay(config, profile, begin, limit, as_json=as_json))
        differences = counts["refused"] + counts["changed"]

    return guarded(work) or (EXIT_DIFFERENT if differences else 0)


async def _replay(
    config: Config, profile: Profile, since: int, limit: int | None, *, as_json: bool
) -> Counter[str]:
    async with Database(place_of(config)) as database:
        registry = ProfileRegistry(database, utc_now)
        await registry.refresh()
        plan = Replay(
            profile=profile,
            issuer=describe_issuer(config.listen.url, ISSUING, await _issuer_certificate(database)),
            issuer_label=ISSUING,
            backdate=dt.timedelta(seconds=config.issuance.backdate_s),
            registry=registry,
            now=utc_now(),
            since=since,
            limit=limit,
        )
        return await _show(plan, database, as_json=as_json)


async def _issuer_certificate(database: Database) -> x509.Certificate:
    query = select(issuers.c.certificate_der).where(issuers.c.label == ISSUING)
    async with database.read() as connection:
        der = (await connection.execute(query)).scalar_one_or_none()
    if der is None:
        raise ConfigError("there is no issuing CA yet: run `certmill init` first")
    return x509.load_der_x509_certificate(der)


async def _show(plan: Replay, database: Database, *, as_json: bool) -> Counter[str]:
    counts: Counter[str] = Counter(same=0, changed=0, refused=0)
    total = await plan.count(database)
    with Progress(console=console_for(sys.stderr), disable=as_json or not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"requests through {plan.profile.identity}", total=total)
        async for difference in plan.run(database):
            progress.advance(task)
            if difference is None:
                counts["same"] += 1
                continue
            counts["refused" if difference.refusal else "changed"] += 1
            text = _json(difference) if as_json else _text(difference)
            sys.stdout.write(text + "\n")
    summary = {"profile": plan.profile.identity, "replayed": counts.total(), **counts}
    if as_json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        sys.stdout.write(
            f"{counts.total()} requests through {plan.profile.identity}: {counts['same']} as before, "
            f"{counts['changed']} changed, {counts['refused']} refused\n"
        )
    return counts


def _json(difference: Difference) -> str:
    return msgspec.json.encode(difference).decode()


def _text(difference: Difference) -> str:
    head = f"{difference.serial} ({difference.client}, {difference.profile}, {difference.issued_at:%Y-%m-%d})"
    if difference.refusal:
        return f"{head}: refused now: {difference.refusal}"
    changes = (f"{one.what}: {one.before or 'none'} -> {one.after or 'none'}" for one in difference.changes)
    return f"{head}: {'; '.join(changes)}"
