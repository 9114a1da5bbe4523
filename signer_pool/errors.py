"""Errors of the signer pool, by whose fault they are."""

from signer_pool.ckr import Ckr


class SignerPoolError(Exception):
    """Base of all errors of this package."""


class PoolFull(SignerPoolError):
    """The queue has reached its bound. Nobody's fault: retry later (HTTP 503 with Retry-After)."""


class BudgetExceeded(SignerPoolError):
    """Bulk work has to wait (HTTP 503 with Retry-After `retry_after_s`). Nobody's fault; nothing was spent.

    `reason` is one word for metrics, `detail` a sentence for the caller.
    """

    def __init__(self, detail: str, *, reason: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason
        self.retry_after_s = retry_after_s


class PoolUnavailable(SignerPoolError):
    """No lane could do it within the caller's deadline: the HSM's fault, `SignerPool.health()` says why."""


class PoolClosed(SignerPoolError):
    """The pool or batcher is closed, or was closed before the work was done."""


class UnknownKey(SignerPoolError):
    """No token has a key of this label: the operator's fault, or a bug."""


class KeyExists(SignerPoolError):
    """A key of this label exists already: nothing was generated."""


class KeyMismatch(SignerPoolError):
    """A token's key is not the one pinned under its label: the operator's fault, or an attack."""


class SigningFailed(SignerPoolError):
    """The token refused, or gave wrong signatures, as often as we try: the HSM's fault."""


class Unsignable(SigningFailed):
    """No session can sign this: the requester's fault, or a bug. Trying again would not help."""


class TokenRefused(SignerPoolError):
    """A lane's own error: one operation that the token refused. The CKR says what to do about it."""

    def __init__(self, message: str, ckr: Ckr) -> None:
        super().__init__(message)
        self.ckr = ckr


class LaneStartError(SignerPoolError):
    """A lane cannot open its token: the operator's fault. One line naming token, module and remedy.

    `code`: the CKR behind it, 0 if there is none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class PinRejected(LaneStartError):
    """The token refused the PIN. Never retried: a few wrong attempts lock a token for good."""


class TokenExists(SignerPoolError):
    """A token of this label exists already: nothing was initialised."""


class TokenInitError(SignerPoolError):
    """The token could not be initialised: the operator's fault."""
