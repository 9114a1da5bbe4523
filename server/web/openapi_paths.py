"""The paths of the API for the OpenAPI document: one function for each operation."""

from collections.abc import Mapping
from typing import get_args

from server.enrol.messages import Status
from server.enrol.rest import FILTERS, MAX_PAGE, PEM_CHAIN, PKCS10
from server.web.openapi_batches import batch_paths
from server.web.openapi_client_paths import client_paths
from server.web.openapi_parts import (
    CERTIFICATE,
    CERTIFICATE_PEM,
    CSR_PEM,
    JSON,
    header,
    idempotency_key,
    problems,
    ref,
    request_id,
    serial,
)

_REVOCATION = {
    "serial": CERTIFICATE["serial"],
    "revoked_at": "2026-11-23T12:00:00Z",
    "reason": "superseded",
    "ocsp": "revoked",
}
_FILTERS: dict[str, tuple[str, dict[str, object]]] = {
    "profile": ("Name of a profile", {"type": "string", "examples": ["tls-server"]}),
    "status": ("What OCSP says; expired for what has passed its end", {"enum": list(get_args(Status))}),
    "dns_name": ("A DNS name in the certificate, whole", {"type": "string", "examples": ["www.example.gov"]}),
    "subject": ("A part of the subject", {"type": "string", "examples": ["O=Railway Department"]}),
    "expires_before": ("Ends before this time (RFC 3339)", {"type": "string", "format": "date-time"}),
    "expires_after": ("Ends at this time or later", {"type": "string", "format": "date-time"}),
    "renewed": ("Whether it has a successor", {"type": "boolean"}),
    "limit": ("Certificates on a page", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    "cursor": ("`next_cursor` of the page before", {"type": "string"}),
}


def paths(profile_schema: Mapping[str, object]) -> dict[str, object]:
    """Return the OpenAPI Paths Object."""
    return {
        "/v1/certificates": {"post": _create(profile_schema), "get": _search()},
        "/v1/certificates/{serial}": {"get": _read(), "parameters": [serial()]},
        "/v1/certificates/{serial}/revocation": {"post": _revoke(), "parameters": [serial()]},
        **client_paths(),
        **batch_paths(profile_schema),
        "/openapi.json": {"get": _document("This document", "openapi", JSON, {"type": "object"})},
        "/docs": {"get": _document("This reference for people", "docs", "text/html", {"type": "string"})},
    }


def _create(profile_schema: Mapping[str, object]) -> dict[str, object]:
    request = {"profile": "tls-server", "csr": CSR_PEM, "validity_days": 90}
    return {
        "operationId": "createCertificate",
        "tags": ["certificates"],
        "summary": "Issue a certificate",
        "description": (
            "Returns when certificate, audit entry and OCSP answer are durable. Send the CSR in JSON, or as "
            f"`{PKCS10}` (DER or PEM) with `?profile=`; the answer has the form that belongs to it."
        ),
        "parameters": [
            {
                "name": "profile",
                "in": "query",
                "description": f"Only with `{PKCS10}`, and needed there. {profile_schema['description']}",
                "schema": {"type": "string", "enum": profile_schema["enum"]},
            },
            idempotency_key(),
        ],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": ref("CertificateRequest"), "example": request},
                PKCS10: {"schema": {"type": "string", "description": "PKCS #10 (RFC 2986), DER or PEM"}},
            },
        },
        "responses": {
            "201": {
                "description": "Issued, or issued before with this key",
                "headers": {
                    "Location": header("Path of the certificate", "/v1/certificates/5f1cc1f4"),
                    "Idempotent-Replayed": header("`true` if this key's certificate existed already", "true"),
                    **request_id(),
                },
                "content": {
                    JSON: {"schema": ref("Certificate"), "example": CERTIFICATE},
                    PEM_CHAIN: {"schema": {"type": "string"}, "example": CERTIFICATE_PEM * 2},
                },
            },
            **problems(400, 403, 408, 413, 415, 422, 429, 500, 503),
        },
    }


def _read() -> dict[str, object]:
    return {
        "operationId": "readCertificate",
        "tags": ["certificates"],
        "summary": "Read one of your certificates",
        "description": f"JSON, or with `Accept: {PEM_CHAIN}` the certificate and its issuer as PEM.",
        "responses": {
            "200": {
                "description": "The certificate and its status",
                "headers": request_id(),
                "content": {
                    JSON: {"schema": ref("Certificate"), "example": CERTIFICATE},
                    PEM_CHAIN: {"schema": {"type": "string"}, "example": CERTIFICATE_PEM * 2},
                },
            },
            **problems(400, 403, 404, 500, 503),
        },
    }


def _search() -> dict[str, object]:
    return {
        "operationId": "searchCertificates",
        "tags": ["certificates"],
        "summary": "Search your certificates",
        "description": "Newest first, in pages. Filters are combined with and.",
        "parameters": [
            {"name": name, "in": "query", "description": text, "schema": schema}
            for name, (text, schema) in _FILTERS.items()
            if name in FILTERS
        ],
        "responses": {
            "200": {
                "description": "One page",
                "headers": request_id(),
                "content": {
                    JSON: {
                        "schema": ref("CertificateList"),
                        "example": {"certificates": [CERTIFICATE], "next_cursor": "MTIz"},
                    }
                },
            },
            **problems(400, 403, 500, 503),
        },
    }


def _revoke() -> dict[str, object]:
    return {
        "operationId": "revokeCertificate",
        "tags": ["certificates"],
        "summary": "Revoke one of your certificates, for ever",
        "description": "When this returns, the revocation is durable and OCSP says `good` no more; the CRL "
        "follows within seconds. Without a body the reason is `unspecified`.",
        "requestBody": {
            "required": False,
            "content": {JSON: {"schema": ref("RevocationRequest"), "example": {"reason": "superseded"}}},
        },
        "responses": {
            "200": {
                "description": "Revoked",
                "headers": request_id(),
                "content": {JSON: {"schema": ref("RevocationAnswer"), "example": _REVOCATION}},
            },
            **problems(400, 403, 404, 408, 409, 413, 500, 503),
        },
    }


def _document(summary: str, operation: str, media_type: str, schema: Mapping[str, object]) -> dict[str, object]:
    return {
        "operationId": operation,
        "tags": ["documentation"],
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": schema}}}},
    }
