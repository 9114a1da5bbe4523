"""Errors of the requester's making, on their way from a preparing process to the authority."""

from pkix import errors as pkix_errors
from pkix.errors import LintError, RequesterError
from server.errors import NotPermitted
from server.preparing.frames import Refused

TOLD = (RequesterError, NotPermitted, LintError)
"""What a process tells; anything else is a defect: it dies of it, and the authority finds out in its own."""

_REQUESTER: dict[str, type[RequesterError]] = {
    cls.__name__: cls
    for cls in (
        pkix_errors.MalformedCsr,
        pkix_errors.ProofOfPossessionFailed,
        pkix_errors.KeyRejected,
        pkix_errors.ProfileViolation,
    )
}
_LINT: dict[str, type[LintError]] = {cls.__name__: cls for cls in (LintError, pkix_errors.ContentRefused)}


def told(error: RequesterError | NotPermitted | LintError) -> Refused:
    """Return the error as a frame."""
    if isinstance(error, LintError):
        return Refused(kind=type(error).__name__, detail=error.detail)
    limit = error.limit if isinstance(error, NotPermitted) else None
    return Refused(
        kind=type(error).__name__, detail=error.detail, field=error.field, remedy=error.remedy, limit=limit
    )


def raised(refused: Refused) -> Exception | None:
    """Return the error that a frame stands for; None if it is of no kind that we know."""
    if refused.kind in _LINT:
        return _LINT[refused.kind](refused.detail)
    if refused.kind in _REQUESTER:
        return _REQUESTER[refused.kind](refused.detail, field=refused.field or "csr", remedy=refused.remedy or "")
    if refused.kind == NotPermitted.__name__:
        return NotPermitted(
            refused.detail, remedy=refused.remedy or "", field=refused.field, limit=refused.limit or "profiles"
        )
    return None
