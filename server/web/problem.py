"""The only map from errors to HTTP answers (RFC 9457). What is not in it is a bug, and says nothing but that."""

from dataclasses import dataclass

import msgspec
from aiohttp import web

from ocsp.errors import OcspError
from pkix import errors as pkix_errors
from pkix.errors import RequesterError
from server import errors
from server.enrol.messages import Problem
from signer_pool.errors import BudgetExceeded, PoolFull, SignerPoolError

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
RETRIED = frozenset({429, 503})
"""The statuses that say when to come again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: fragment of its type URI, HTTP status and title."""

    slug: str
    status: int
    title: str
    meaning: str


_REQUEST = "Mend the request as `detail` and `remedy` say, then send it again."
_PERHAPS_DONE = (
    "The certificate may exist already. Send the same request again, with the same Idempotency-Key, after "
    "Retry-After: you get that one."
)
_LATER = "Nothing was released. Send the same request again, with the same Idempotency-Key, after Retry-After."

KINDS: dict[type[BaseException], Kind] = {
    pkix_errors.MalformedCsr: Kind("malformed-csr", 400, "The CSR cannot be parsed", _REQUEST),
    pkix_errors.ProofOfPossessionFailed: Kind(
        "proof-of-possession", 400, "The CSR's signature does not verify", _REQUEST
    ),
    pkix_errors.KeyRejected: Kind("key-rejected", 422, "The subject key is not acceptable", _REQUEST),
    pkix_errors.ProfileViolation: Kind(
        "profile-violation", 422, "The profile does not allow this request", _REQUEST
    ),
    errors.InvalidRequest: Kind("invalid-request", 400, "The request is not of the documented form", _REQUEST),
    errors.BrokenBatch: Kind(
        "broken-batch",
        400,
        "The batch cannot be read",
        "Nothing of it was kept. Mend the row that `detail` names, then send the whole batch again.",
    ),
    errors.BatchTooLarge: Kind("batch-too-large", 413, "The batch is too large", "Split it into several."),
    errors.TooManyBatches: Kind(
        "too-many-batches", 429, "Too many batches of yours wait", "Wait until one has ended, or cancel one."
    ),
    errors.NotAuthenticated: Kind(
        "not-authenticated", 403, "The client certificate is not accepted", "Ask the CA's operators."
    ),
    errors.NotPermitted: Kind(
        "not-permitted", 403, "This client may not do this", "Ask the CA's operators for the permission."
    ),
    errors.QuotaExhausted: Kind(
        "quota-exhausted",
        403,
        "This client's certificates of this year are used up",
        "Ask the CA's operators for a larger quota, or wait until `resets_at`.",
    ),
    errors.RateExceeded: Kind(
        "rate-limited", 429, "This client asks too often", "Send the same request again after Retry-After."
    ),
    errors.NotFound: Kind("not-found", 404, "There is no such thing", _REQUEST),
    errors.Conflict: Kind("conflict", 409, "The request contradicts the present state", _REQUEST),
    errors.RenewalRefused: Kind("renewal-refused", 409, "This certificate cannot be renewed so", _REQUEST),
    errors.IdempotencyConflict: Kind(
        "idempotency-conflict", 422, "The idempotency key belongs to another request", _REQUEST
    ),
    pkix_errors.ContentRefused: Kind(
        "lint-content",
        422,
        "The certificate would break a rule, by what the request asks for",
        "Mend the subject, the names or the key as the findings in `detail` say, then send the request again.",
    ),
    pkix_errors.LintError: Kind(
        "lint",
        500,
        "The certificate would break a rule: its profile is broken",
        "Report it to the CA's operators with the request id; nothing was signed. They correct the profile or, "
        "where a finding is about the CA's URLs, listen.public_url.",
    ),
    errors.LintUnavailable: Kind("lint-unavailable", 503, "The linter is not available", _LATER),
    errors.Overloaded: Kind("overloaded", 503, "Too many requests are waiting", _LATER),
    errors.StorageError: Kind("storage", 503, "The database is not available", _LATER),
    BudgetExceeded: Kind("budget", 503, "The HSMs have no time left for bulk work now", _LATER),
    PoolFull: Kind("signer-busy", 503, "Too many signatures are waiting", _LATER),
    SignerPoolError: Kind("signer", 503, "No HSM session could sign in time", _LATER),
    OcspError: Kind("response-store", 503, "The OCSP response store is not available", _PERHAPS_DONE),
    TimeoutError: Kind("deadline", 503, "The request took too long", _LATER),
}
INTERNAL = Kind("internal", 500, "A defect in certmill", "Report it with the request id; nothing was released.")
_BY_STATUS = {
    404: Kind("no-such-resource", 404, "There is nothing at this path", "See /docs for the paths."),
    405: Kind("method-not-allowed", 405, "This path has other methods", "See the Allow header."),
    408: Kind("body-deadline", 408, "The request body came too slowly", _REQUEST),
    413: Kind("too-large", 413, "The request body is too large", _REQUEST),
    415: Kind("unsupported-media-type", 415, "This content type is not understood", _REQUEST),
}
ALL_KINDS: tuple[Kind, ...] = (*KINDS.values(), *_BY_STATUS.values(), INTERNAL)

_WRITTEN_FOR_CALLERS = (
    RequesterError,
    pkix_errors.LintError,
    errors.RequestRefused,
    errors.Overloaded,
    BudgetExceeded,
)
_encoder = msgspec.json.Encoder()


def kind_of(error: BaseException) -> Kind:
    """Classify an error by its nearest mapped class."""
    for cls in type(error).__mro__:
        if cls in KINDS:
            return KINDS[cls]
    if isinstance(error, web.HTTPException):
        return _BY_STATUS.get(error.status, INTERNAL)
    return INTERNAL


def problem_of(error: BaseException, request_id: str) -> Problem:
    """Return the problem details of `error`; never its internals."""
    kind = kind_of(error)
    return Problem(
        type=f"/docs#{kind.slug}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error, kind),
        instance=f"urn:request:{request_id}",
        remedy=getattr(error, "remedy", None) or kind.meaning,
        field=getattr(error, "field", None),
        **getattr(error, "members", {}),
    )


def problem_response(error: BaseException, request_id: str) -> web.Response:
    """Answer with the problem details of `error`."""
    kind = kind_of(error)
    problem = problem_of(error, request_id)
    headers = {"Cache-Control": "no-store"}
    if kind.status in RETRIED:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", RETRY_AFTER_S))
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = error.headers.get("Allow", "")
    return web.Response(
        status=kind.status, body=_encoder.encode(problem), content_type=CONTENT_TYPE, headers=headers
    )


def _detail(error: BaseException, kind: Kind) -> str:
    """Return the error's own words only where they were written for the caller."""
    if isinstance(error, _WRITTEN_FOR_CALLERS):
        return str(error.detail)
    if isinstance(error, web.HTTPException) and error.text and kind is not INTERNAL:
        return error.text
    return kind.title
