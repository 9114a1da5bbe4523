import json

import pytest
from aiohttp import web

from ocsp.errors import OcspError
from pkix.errors import ContentRefused, KeyRejected, LintError, MalformedCsr
from server.enrol.messages import CertificateRequest, RevocationRequest
from server.errors import InvalidRequest, LintUnavailable, NotFound, Overloaded, StorageError
from server.web.body import decode_json
from server.web.problem import ALL_KINDS, problem_response
from signer_pool.errors import PoolUnavailable


def answer(error: Exception) -> tuple[web.Response, dict[str, object]]:
    response = problem_response(error, "request-1")
    assert isinstance(response.body, bytes)
    return response, json.loads(response.body)


def test_the_requesters_fault_names_field_and_remedy() -> None:
    response, problem = answer(KeyRejected("too short", field="csr", remedy="make a longer one"))
    assert response.status == problem["status"] == 422
    assert response.content_type == "application/problem+json"
    assert problem["type"] == "/docs#key-rejected"
    assert problem["instance"] == "urn:request:request-1"
    assert (problem["detail"], problem["field"], problem["remedy"]) == ("too short", "csr", "make a longer one")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MalformedCsr("x", field="csr", remedy="y"), 400),
        (NotFound("x", remedy="y"), 404),
        (web.HTTPNotFound(), 404),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405),
        (web.HTTPRequestTimeout(text="late"), 408),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413),
        (Overloaded("x"), 503),
        (StorageError("secret path"), 503),
        (PoolUnavailable("secret token"), 503),
        (OcspError("secret"), 503),
        (TimeoutError(), 503),
        (web.HTTPBadGateway(), 500),
        (RuntimeError("secret"), 500),
    ],
)
def test_each_error_has_its_status_and_says_no_internals(error: Exception, status: int) -> None:
    response, problem = answer(error)
    assert response.status == problem["status"] == status
    assert "secret" not in str(problem)
    assert ("Retry-After" in response.headers) == (status == 503)
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (LintError("BR 6.3.2: too long"), 500, "lint"),
        (ContentRefused("BR 7.1.4.3: common name"), 422, "lint-content"),
        (LintUnavailable("the linter is down"), 503, "lint-unavailable"),
    ],
)
def test_what_a_linter_finds_is_told_with_its_clause_and_whose_fault_it_is(
    error: Exception, status: int, slug: str
) -> None:
    response, problem = answer(error)
    assert (response.status, problem["type"], problem["detail"]) == (status, f"/docs#{slug}", str(error))
    assert ("Retry-After" in response.headers) == (status == 503)


def test_a_wrong_method_says_which_are_right() -> None:
    assert answer(web.HTTPMethodNotAllowed("PUT", ["GET"]))[0].headers["Allow"] == "GET"


def test_slugs_are_unique() -> None:
    slugs = [kind.slug for kind in ALL_KINDS]
    assert len(slugs) == len(set(slugs))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"profile": 5, "csr": "x"}', "profile"),
        (b'{"profile": "p", "csr": "x", "extra": 1}', None),
        (b'{"profile": "p"}', None),
        (b'{"profile": "p", "csr": "x", "validity_days": 0}', "validity_days"),
        (b"[]", None),
        (b"{", None),
        (b"\xff", None),
    ],
)
def test_json_is_strict_and_names_the_field(body: bytes, field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_json(body, CertificateRequest)
    assert caught.value.field == field


def test_reasons_are_the_asn1_names() -> None:
    assert decode_json(b'{"reason": "keyCompromise"}', RevocationRequest).reason.value == "keyCompromise"
    with pytest.raises(InvalidRequest):
        decode_json(b'{"reason": "certificateHold"}', RevocationRequest)
