"""Errors of the server package, by whose fault they are. `web/problem.py` alone turns them into HTTP."""


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
    """The client is known, but may not do this."""


class NotFound(RequestRefused):
    """There is no such thing, or not for this client."""


class Conflict(RequestRefused):
    """The request contradicts the present state."""


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


class StorageError(ServerError):
    """The database could not do its part (operator): nothing was released."""


class AlreadyRunning(ServerError):
    """Another certmill serves this home directory (operator)."""


class StartRefused(ServerError):
    """A child of the supervisor could not start, by its own words, before somebody mends something (operator)."""
