"""The paths of the API for the OpenAPI document: one function for each operation."""

from collections.abc import Mapping
from typing import get_args

from server.enrol.messages import Status
from server.enrol.rest import FILTERS, MAX_PAGE, PEM_CHAIN, PKCS10
from server.web.openapi_batches import batch_paths

_JSON = "application/json"
_CSR_PEM = (
    "-----BEGIN CERTIFICATE REQUEST-----\nMIHTMHsCAQAwGTEXMBUGA1UEAwwOd3d3…\n-----END CERTIFICATE REQUEST-----\n"
)
_CERTIFICATE_PEM = "-----BEGIN CERTIFICATE-----\nMIICyzCCAlGgAwIBAgIQX…\n-----END CERTIFICATE-----\n"
_CERTIFICATE = {
    "serial": "5f1cc1f4b3a2907d6e8810f2a4b6c8de",
    "status": "good",
    "profile": "tls-server@1",
    "subject": "CN=www.example.gov",
    "dns_names": ["www.example.gov"],
    "not_before": "2026-11-23T11:00:00Z",
    "not_after": "2027-06-11T10:59:59Z",
    "certificate": _CERTIFICATE_PEM,
    "chain": [_CERTIFICATE_PEM],
}
_REVOCATION = {
    "serial": _CERTIFICATE["serial"],
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
    "limit": ("Certificates on a page", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 100}),
    "cursor": ("`next_cursor` of the page before", {"type": "string"}),
}


def paths(profile_schema: Mapping[str, object]) -> dict[str, object]:
    """Return the OpenAPI Paths Object."""
    return {
        "/v1/certificates": {"post": _create(profile_schema), "get": _search()},
        "/v1/certificates/{serial}": {"get": _read(), "parameters": [_serial()]},
        "/v1/certificates/{serial}/revocation": {"post": _revoke(), "parameters": [_serial()]},
        **batch_paths(profile_schema),
        "/openapi.json": {"get": _document("This document", "openapi", _JSON, {"type": "object"})},
        "/docs": {"get": _document("This reference for people", "docs", "text/html", {"type": "string"})},
    }


def _create(profile_schema: Mapping[str, object]) -> dict[str, object]:
    request = {"profile": "tls-server", "csr": _CSR_PEM, "validity_days": 90}
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
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "One for each certificate that you want. The same request with the same key gives "
                "the same certificate; another request with it is refused.",
                "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
                "example": "9f3d1c52-6a0e-4a1b-8a53-0d4b8a1d0b7e",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                _JSON: {"schema": _ref("CertificateRequest"), "example": request},
                PKCS10: {"schema": {"type": "string", "description": "PKCS #10 (RFC 2986), DER or PEM"}},
            },
        },
        "responses": {
            "201": {
                "description": "Issued, or issued before with this key",
                "headers": {
                    "Location": _header("Path of the certificate", "/v1/certificates/5f1cc1f4"),
                    "Idempotent-Replayed": _header("`true` if this key's certificate existed already", "true"),
                    **_request_id(),
                },
                "content": {
                    _JSON: {"schema": _ref("Certificate"), "example": _CERTIFICATE},
                    PEM_CHAIN: {"schema": {"type": "string"}, "example": _CERTIFICATE_PEM * 2},
                },
            },
            **_problems(400, 403, 408, 413, 415, 422, 500, 503),
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
                "headers": _request_id(),
                "content": {
                    _JSON: {"schema": _ref("Certificate"), "example": _CERTIFICATE},
                    PEM_CHAIN: {"schema": {"type": "string"}, "example": _CERTIFICATE_PEM * 2},
                },
            },
            **_problems(400, 403, 404, 500, 503),
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
                "headers": _request_id(),
                "content": {
                    _JSON: {
                        "schema": _ref("CertificateList"),
                        "example": {"certificates": [_CERTIFICATE], "next_cursor": "MTIz"},
                    }
                },
            },
            **_problems(400, 403, 500, 503),
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
            "content": {_JSON: {"schema": _ref("RevocationRequest"), "example": {"reason": "superseded"}}},
        },
        "responses": {
            "200": {
                "description": "Revoked",
                "headers": _request_id(),
                "content": {_JSON: {"schema": _ref("RevocationAnswer"), "example": _REVOCATION}},
            },
            **_problems(400, 403, 404, 408, 409, 413, 500, 503),
        },
    }


def _document(summary: str, operation: str, media_type: str, schema: Mapping[str, object]) -> dict[str, object]:
    return {
        "operationId": operation,
        "tags": ["documentation"],
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {"schema": schema}}}},
    }


def _serial() -> dict[str, object]:
    return {
        "name": "serial",
        "in": "path",
        "required": True,
        "description": "Serial number, hexadecimal",
        "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{2,40}$"},
        "example": _CERTIFICATE["serial"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(description: str, example: str) -> dict[str, object]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def _request_id() -> dict[str, object]:
    return {"X-Request-Id": _header("Yours if you sent one, else ours; in every log line", "0f8e6a1b2c3d4e5f")}


def _problems(*statuses: int) -> dict[str, object]:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}
