"""The paths of a client's own affairs for the OpenAPI document: usage and renewal."""

from server.enrol.rest import PEM_CHAIN, PKCS10
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

_USAGE = {
    "client": "tax",
    "at": "2026-11-23T12:00:00Z",
    "limits": {
        "profiles": ["company", "tls-server"],
        "names": ["tax.example.gov"],
        "organizations": ["Tax Department"],
        "identifiers": ["NTRLA-01-*"],
        "yearly_quota": 2000,
        "rate_per_minute": 60,
    },
    "year": 2026,
    "used": 1630,
    "remaining": 370,
    "resets_at": "2027-01-01T00:00:00Z",
    "by_profile": {"company": 1600, "tls-server": 30},
    "by_month": {"2026-10": 1500, "2026-11": 130},
    "live": 1611,
    "expiring": {"days_30": 4, "days_60": 9, "days_90": 31},
    "forecast": {
        "year_end": 1822,
        "scheduled_renewals": 12,
        "new_per_day": 4.6,
        "quota_exhausted_on": None,
    },
}


def client_paths() -> dict[str, object]:
    """Return the Path Items."""
    return {
        "/v1/certificates/{serial}/renewal-info": {"get": _renewal_info(), "parameters": [serial()]},
        "/v1/certificates/{serial}/renewal": {"post": _renew(), "parameters": [serial()]},
        "/v1/usage": {"get": _usage()},
    }


def _usage() -> dict[str, object]:
    return {
        "operationId": "readUsage",
        "tags": ["usage"],
        "summary": "What you may ask for, what you used, what you will need",
        "description": "The forecast is what is used, the renewals that live certificates will need, and new ones "
        "at the pace of the last 90 days, until the end of the calendar year (UTC).",
        "responses": {
            "200": {
                "description": "Limits, usage and forecast",
                "headers": request_id(),
                "content": {JSON: {"schema": ref("Usage"), "example": _USAGE}},
            },
            **problems(400, 403, 500, 503),
        },
    }


def _renewal_info() -> dict[str, object]:
    example = {"suggestedWindow": {"start": "2027-04-02T03:10:00Z", "end": "2027-04-04T03:10:00Z"}}
    return {
        "operationId": "readRenewalInfo",
        "tags": ["certificates"],
        "summary": "When to renew one of your certificates",
        "description": "As RFC 9773 §4.2. Draw a moment of the window and renew then; where it lies in the past, "
        "as after a revocation, at once. Windows are spread over the certificates, so that what was issued on one "
        "day is not renewed on one day.",
        "responses": {
            "200": {
                "description": "The window",
                "headers": {"Retry-After": header("Ask again after so many seconds", "21600"), **request_id()},
                "content": {JSON: {"schema": ref("RenewalInfo"), "example": example}},
            },
            **problems(400, 403, 404, 500, 503),
        },
    }


def _renew() -> dict[str, object]:
    return {
        "operationId": "renewCertificate",
        "tags": ["certificates"],
        "summary": "Renew one of your certificates",
        "description": "Issues a certificate with the same subject and names under the present version of the "
        "same profile. Refused if the old one is revoked, ended too long ago, or was renewed before; the same CSR "
        "again gives the same successor. The old one stays valid until its end. A renewal counts in the quota.",
        "parameters": [idempotency_key()],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": ref("RenewalRequest"), "example": {"csr": CSR_PEM}},
                PKCS10: {"schema": {"type": "string", "description": "PKCS #10 (RFC 2986), DER or PEM"}},
            },
        },
        "responses": {
            "201": {
                "description": "Renewed, or renewed before with this CSR or key",
                "headers": {
                    "Location": header("Path of the new certificate", "/v1/certificates/5f1cc1f4"),
                    "Idempotent-Replayed": header("`true` if the successor existed already", "true"),
                    **request_id(),
                },
                "content": {
                    JSON: {"schema": ref("Certificate"), "example": CERTIFICATE},
                    PEM_CHAIN: {"schema": {"type": "string"}, "example": CERTIFICATE_PEM * 2},
                },
            },
            **problems(400, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503),
        },
    }
