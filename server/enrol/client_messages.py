"""What the REST API says about a client's usage and about renewal."""

import datetime as dt
from typing import Annotated

import msgspec
from msgspec import Meta

from server.enrol.messages import Time

Count = Annotated[int, Meta(ge=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the client may ask for; `*` is anything, an empty list nothing, null no limit."""

    profiles: tuple[str, ...]
    names: Annotated[
        tuple[str, ...],
        Meta(description="DNS names (with all below them), IP addresses; also domains of e-mail, hosts of URIs"),
    ]
    organizations: Annotated[tuple[str, ...], Meta(description="Values of O; letter case does not matter")]
    identifiers: Annotated[
        tuple[str, ...],
        Meta(description="organizationIdentifier, serialNumber and UID; with `*` at the end, what begins so"),
    ]
    yearly_quota: Annotated[int | None, Meta(description="Certificates in a calendar year (UTC)")]
    rate_per_minute: Annotated[int | None, Meta(description="Requests for certificates in a minute")]


class Expiring(msgspec.Struct, frozen=True, kw_only=True):
    """Live certificates that nobody has renewed and that end within so many days from now."""

    days_30: Count
    days_60: Count
    days_90: Count


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Until the year's end: what is used, the renewals of live certificates, and new ones at the recent pace."""

    year_end: Annotated[int, Meta(description="Certificates used at the end of the year")]
    scheduled_renewals: Annotated[int, Meta(description="Renewals that live certificates will need until then")]
    new_per_day: Annotated[float, Meta(description="New certificates, renewals apart, a day in the last 90 days")]
    quota_exhausted_on: Annotated[
        dt.date | None, Meta(description="When the quota will not suffice; null: not this year")
    ]


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the calling client used this year. Renewals count; a revocation gives nothing back."""

    client: str
    at: Time
    limits: Limits
    year: int
    used: Annotated[int, Meta(ge=0, description="Certificates of this year, also those in the making")]
    remaining: Annotated[int | None, Meta(description="Of the quota; null: no limit")]
    resets_at: Annotated[dt.datetime, Meta(tz=True, description="When the next year's quota begins")]
    by_profile: dict[str, int]
    by_month: Annotated[dict[str, int], Meta(description="By month of this year, as 2026-11")]
    live: Annotated[int, Meta(description="Certificates neither revoked nor expired")]
    expiring: Expiring
    forecast: Forecast


class SuggestedWindow(msgspec.Struct, frozen=True, kw_only=True):
    """When to renew: at a moment of it that the client draws; at once where it lies in the past."""

    start: Time
    end: Time


class RenewalInfo(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A hint when to renew (RFC 9773 §4.2)."""

    suggested_window: SuggestedWindow


class RenewalRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for the successor of a certificate."""

    csr: Annotated[
        str,
        Meta(
            max_length=65536,
            description="PKCS #10 request (RFC 2986), PEM, with the new key. Subject and names come from the old "
            "certificate: leave them out, or write the same.",
        ),
    ]
    validity_days: (
        Annotated[int, Meta(ge=1, le=3660, description="Shortens the profile's validity; days")] | None
    ) = None
