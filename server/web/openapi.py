"""The OpenAPI 3.1 document: schemas from the wire types, problems from the map of errors."""

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from pkix.profile import Profile
from server.batches.results import ResultRow
from server.batches.rows import RowRequest
from server.enrol import client_messages, messages
from server.enrol.batch_messages import Batch, BatchList
from server.web.openapi_paths import paths
from server.web.problem import ALL_KINDS, CONTENT_TYPE, RETRIED, RETRY_AFTER_S

_TYPES = (
    messages.CertificateRequest,
    messages.RequestedNames,
    messages.Certificate,
    messages.CertificateList,
    messages.RevocationRequest,
    messages.RevocationAnswer,
    client_messages.Usage,
    client_messages.RenewalInfo,
    client_messages.RenewalRequest,
    messages.Problem,
    RowRequest,
    Batch,
    BatchList,
    ResultRow,
)
_ABOUT = """Certificates for the systems of a government: ask for one with a CSR, read it, revoke it.

Every call needs a client certificate that the CA's operators gave to your system. Send an `Idempotency-Key` with
every request for a certificate: the same request with the same key can be repeated until it succeeds, and never
yields a second certificate. Errors are RFC 9457 problem details that name the field and the remedy."""


def openapi_document(*, version: str, profiles: Sequence[Profile]) -> dict[str, object]:
    """Return the document (OpenAPI 3.1.0) of all paths of the API listener.

    `version`: that of certmill. `profiles`: those that clients may ask for.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "certmill", "version": version, "description": _ABOUT},
        "servers": [{"url": "/", "description": "where this document was fetched: the API listener"}],
        "tags": [
            {"name": "certificates", "description": "Issue, read, search and revoke"},
            {"name": "usage", "description": "Limits, usage and forecast"},
            {"name": "batches", "description": "Many requests in one call"},
            {"name": "documentation", "description": "This reference; the admin listener has it too"},
        ],
        "security": [{"mutualTLS": []}],
        "paths": paths(profile_schema(profiles)),
        "components": {
            "schemas": _schemas(profiles),
            "responses": {f"Problem{status}": _problem(status) for status in sorted(_statuses())},
            "securitySchemes": {
                "mutualTLS": {
                    "type": "mutualTLS",
                    "description": "A TLS client certificate of this CA, enrolled by its operators.",
                }
            },
        },
    }


def profile_schema(profiles: Sequence[Profile]) -> dict[str, object]:
    """Return the schema of a profile's name: those that a client may ask for."""
    offered = "; ".join(f"`{profile.name}`: {profile.title}" for profile in profiles)
    return {"type": "string", "enum": [profile.name for profile in profiles], "description": offered}


def _schemas(profiles: Sequence[Profile]) -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        schema["description"] = inspect.cleandoc(schema["description"])
    schemas["CertificateRequest"]["properties"]["profile"] = profile_schema(profiles)
    return schemas


def _statuses() -> set[int]:
    return {kind.status for kind in ALL_KINDS}


def _problem(status: int) -> dict[str, object]:
    kinds = [kind for kind in ALL_KINDS if kind.status == status]
    example = {
        "type": f"/docs#{kinds[0].slug}",
        "title": kinds[0].title,
        "status": status,
        "detail": kinds[0].title,
        "instance": "urn:request:0f8e6a1b2c3d4e5f",
        "remedy": kinds[0].meaning,
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    response: dict[str, object] = {
        "description": "; ".join(f"`{kind.slug}`: {kind.title}" for kind in kinds),
        "content": {CONTENT_TYPE: {"schema": schema, "example": example}},
    }
    if status in RETRIED:
        retry = {"type": "integer", "minimum": 1, "examples": [RETRY_AFTER_S]}
        response["headers"] = {"Retry-After": {"description": "Seconds to wait", "schema": retry}}
    return response
