"""How long a certificate may live, by the rules of others that change by date."""

import datetime as dt
import enum


class Maximum(enum.StrEnum):
    """Rules that bound a lifetime beside the profile's own number of days."""

    NONE = "none"
    CABF_TLS = "cabf-tls"


_CABF_TLS = (
    (dt.datetime(2029, 3, 15, tzinfo=dt.UTC), dt.timedelta(days=47)),
    (dt.datetime(2027, 3, 15, tzinfo=dt.UTC), dt.timedelta(days=100)),
)
_CABF_TLS_FIRST = dt.timedelta(days=200)


def longest_lifetime(maximum: Maximum, at: dt.datetime) -> dt.timedelta:
    """Return the longest lifetime, both ends included, of a certificate that begins or is issued `at`.

    CA/Browser Forum: 200 days, 100 from 2027-03-15 00:00:00 UTC, 47 from 2029-03-15 (BR 6.3.2, ballot SC-081).
    """
    if maximum is Maximum.NONE:
        return dt.timedelta.max
    return next((lifetime for since, lifetime in _CABF_TLS if at >= since), _CABF_TLS_FIRST)
