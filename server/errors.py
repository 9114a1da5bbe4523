"""Errors of the server package, by whose fault they are. `web/problem.py` alone turns them into HTTP."""

import datetime as dt
from dataclasses import dataclass


class ServerError(Exception):
    """Base of all errors of this package."""


class ConfigError(ServerError):
    """A setting is wrong (operator): one line that names the setting and the remedy."""


class RequestRefused(ServerError):
    """Base of refusals that the caller can act on (requester).

    `remedy` says what to do; `field` names the part of the request, where one part is to blame.
    """

    def __init__(self, detail: str, *, remedy: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.field = field


class InvalidRequest(RequestRefused):
    """The request is not of the documented form."""


class NotAuthenticated(RequestRefused):
    """The client certificate is unknown, expired or revoked."""


class NotPermitted(RequestRefused):
    """The client is known, but may not do this. `limit` is which of its limits says so."""

    def __init__(self, detail: str, *, remedy: str, field: str | None = None, limit: str = "profiles") -> None:
        super().__init__(detail, remedy=remedy, field=field)
        self.limit = limit


class QuotaExhausted(RequestRefused):
    """The client has had its certificates of this year. `members` go into the problem details."""

    limit = "quota"

    def __init__(self, detail: str, *, remedy: str, quota: int, used: int, resets_at: dt.datetime) -> None:
        super().__init__(detail, remedy=remedy)
        self.members = {"limit": quota, "used": used, "resets_at": resets_at}


WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many requests a client may still send, and in how many seconds all of them are there again."""

    per_minute: int
    remaining: int
    reset_s: int

    @property
    def headers(self) -> dict[str, str]:
        """Return the fields of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"requests";q={self.per_minute};w={WINDOW_S}',
            "RateLimit": f'"requests";r={self.remaining};t={self.reset_s}',
        }


class RateExceeded(RequestRefused):
    """The client asks for certificates too often: again after `retry_after_s`."""

    limit = "rate"

    def __init__(self, detail: str, *, remedy: str, retry_after_s: int, allowance: Allowance) -> None:
        super().__init__(detail, remedy=remedy)
        self.retry_after_s = retry_after_s
        self.allowance = allowance
        self.members = {"limit": allowance.per_minute}


class NotFound(RequestRefused):
    """There is no such thing, or not for this client."""


class Conflict(RequestRefused):
    """The request contradicts the present state."""


class RenewalRefused(Conflict):
    """This certificate cannot be renewed, or not with this CSR."""


class AlreadyRenewed(RenewalRefused):
    """The certificate has a successor."""


class IdempotencyConflict(RequestRefused):
    """The idempotency key was used before with another request."""


class BrokenBatch(InvalidRequest):
    """A batch cannot be read: nothing of it is kept. `detail` names the row, `field` the column."""


class BatchTooLarge(RequestRefused):
    """A batch has more rows or bytes than the settings allow."""


class TooManyBatches(RequestRefused):
    """The client has as many batches, or rows in them, as the settings allow at a time."""


class Overloaded(ServerError):
    """A bounded queue is full, or a dependency is down for now: try again after `retry_after_s`."""

    def __init__(self, detail: str, *, retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class LintUnavailable(Overloaded):
    """The linter is down, too slow or has too much to do: what must be linted is not signed."""


class StorageError(ServerError):
    """The database could not do its part (operator): nothing was released."""


class KeyInUse(ServerError):
    """Another call, perhaps at another authority, has this idempotency key: wait for its certificate."""


class NotDurable(StorageError, ConfigError):
    """The database confirms what a crash can lose (operator): nothing is written to it."""


class CommitInDoubt(StorageError):
    """A fault at COMMIT: what was written may be there (operator); nothing was released."""


class DiskFailed(StorageError):
    """The database's disk gave an error after which it is not believed: this process must end (operator)."""


class AlreadyRunning(ServerError):
    """Another certmill serves this home directory (operator)."""


class StartRefused(ServerError):
    """A child of the supervisor could not start, by its own words, before somebody mends something (operator)."""
