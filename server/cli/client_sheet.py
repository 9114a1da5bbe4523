"""Clients as `certmill client list` and `show` print them."""

import sys
from collections.abc import Mapping, Sequence

import msgspec
from rich.table import Table

from server.auth.directory import ClientRecord
from server.usage.report import UsageReport

_FINGERPRINT_DIGITS = 16


def write_json(value: object) -> None:
    """Print a value for programs, on one line."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def plain(one: ClientRecord) -> dict[str, object]:
    """Return everything about a client, for programs."""
    return {**msgspec.to_builtins(one, builtin_types=(bytes,)), "spki_sha256": one.spki_sha256.hex()}


def table(records: Sequence[ClientRecord]) -> Table:
    """Return all clients, one a row."""
    made = Table(
        "client", "profiles", "names", "organizations", "identifiers", "used", "rate", "live", "key", "state"
    )
    for one in records:
        made.add_row(
            one.name,
            *(", ".join(limit) or "none" for limit in _limits(one).values()),
            f"{one.issued} of {_number(one.yearly_quota)}",
            _number(one.rate_per_minute),
            str(one.live_certificates),
            one.spki_sha256.hex()[:_FINGERPRINT_DIGITS],
            "disabled" if one.disabled else "active",
        )
    return made


def sheet(one: ClientRecord, usage: UsageReport) -> Table:
    """Return one client, one fact a row."""
    made = Table("client", one.name)
    for limit, values in _limits(one).items():
        made.add_row(limit, "\n".join(values) or "none")
    made.add_row("requests per minute", _number(one.rate_per_minute))
    made.add_row("state", "disabled" if one.disabled else "active")
    made.add_row("key (SHA-256)", one.spki_sha256.hex())
    made.add_row(f"certificates in {usage.year}", f"{usage.used} of {_number(one.yearly_quota)}")
    made.add_row("of them by profile", _counts(usage.by_profile))
    made.add_row("of them by month", _counts(usage.by_month))
    made.add_row("live certificates", str(usage.live))
    expiring = usage.expiring
    made.add_row(
        "not renewed, end within",
        f"30 days: {expiring.days_30}\n60 days: {expiring.days_60}\n90 days: {expiring.days_90}",
    )
    ahead = usage.forecast
    made.add_row(
        f"forecast for {usage.year}",
        f"{ahead.year_end} ({ahead.scheduled_renewals} renewals to come, {ahead.new_per_day} new a day)",
    )
    made.add_row("quota ends on", str(ahead.quota_exhausted_on or "not this year"))
    return made


def _limits(one: ClientRecord) -> dict[str, tuple[str, ...]]:
    return {
        "profiles": one.profiles,
        "names": one.names,
        "organizations": one.organizations,
        "identifiers": one.identifiers,
    }


def _number(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)


def _counts(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{name}: {number}" for name, number in counts.items()) or "none"
