"""The paths of batches for the OpenAPI document."""

from collections.abc import Mapping
from typing import Any, get_args

from server.batches.results import CSV_COLUMNS, Form
from server.enrol.batches import EVENT_STREAM, MAX_PAGE, MEDIA_TYPES

_JSON = "application/json"
_NDJSON = "application/x-ndjson"
_ID = "019da3f0c1d27f4e0c6b2a9d8e31f5a7"
_ROW = {"reference": "licence 4711", "csr": "MIHTMHsCAQAwGTEXMBUGA1UEAwwOd3d3…"}
_BATCH = {
    "id": _ID,
    "profile": "tls-server@2",
    "state": "running",
    "dry_run": False,
    "rows": 2000,
    "issued": 1310,
    "failed": 2,
    "checked": 0,
    "pending": 688,
    "created_at": "2026-11-23T11:00:00Z",
    "started_at": "2026-11-23T11:00:01Z",
    "finished_at": None,
    "detail": None,
}


def batch_paths(profile_schema: Mapping[str, object]) -> dict[str, object]:
    """Return the part of the OpenAPI Paths Object on batches."""
    item = {"parameters": [_id()]}
    return {
        "/v1/batches": {"post": _create(profile_schema), "get": _list()},
        "/v1/batches/{id}": {"get": _read(), **item},
        "/v1/batches/{id}/events": {"get": _events(), **item},
        "/v1/batches/{id}/pause": {"post": _change("pause", "Begin no further row until it is resumed"), **item},
        "/v1/batches/{id}/resume": {"post": _change("resume", "Go on with a paused batch"), **item},
        "/v1/batches/{id}/cancel": {"post": _change("cancel", "End a batch; what is issued stays issued"), **item},
        "/v1/batches/{id}/results": {"get": _results(), **item},
    }


def _create(profile_schema: Mapping[str, object]) -> dict[str, object]:
    return {
        "operationId": "createBatch",
        "tags": ["batches"],
        "summary": "Send up to 100,000 requests at once",
        "description": (
            "The rows are read as they arrive. What is wrong with a row's values fails that row, in its result; "
            "a body that cannot be read, or a column that nobody knows, is refused as a whole, nothing is kept. "
            "CSV has a header with `csr` and any of `reference`, `profile`, `validity_days`, `dns`, `ip`, "
            "`email`, `uri` (several values separated by blanks) and subject attributes; comma, semicolon or tab; "
            "UTF-8 or UTF-16."
        ),
        "parameters": [
            {
                "name": "profile",
                "in": "query",
                "required": True,
                "description": f"Of rows that name none. {profile_schema['description']}",
                "schema": {"type": "string", "enum": profile_schema["enum"]},
            },
            {
                "name": "dry_run",
                "in": "query",
                "description": "Check and lint every row; nothing is recorded as a certificate, nothing signed",
                "schema": {"type": "boolean", "default": False},
            },
            {
                "name": "validity_days",
                "in": "query",
                "description": "Shortens the profile's validity, in rows that do not say themselves",
                "schema": {"type": "integer", "minimum": 1, "maximum": 3660},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "One for each batch. The same batch with the same key gives the same batch; "
                "another one with it is refused.",
                "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
                "example": "9f3d1c52-6a0e-4a1b-8a53-0d4b8a1d0b7e",
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                _NDJSON: {"schema": _ref("RowRequest"), "example": _ROW},
                _JSON: {"schema": {"type": "array", "items": _ref("RowRequest")}, "example": [_ROW]},
                "text/csv": {"schema": {"type": "string"}, "example": "reference,csr\nlicence 4711,MIHTMHsC…\n"},
            },
        },
        "responses": {
            "202": {
                "description": "Received, durable, and worked off from now on; or received before with this key",
                "headers": {
                    "Location": _header("Path of the batch", f"/v1/batches/{_ID}"),
                    "Idempotent-Replayed": _header("`true` if this key's batch existed already", "true"),
                    **_request_id(),
                },
                "content": {_JSON: {"schema": _ref("Batch"), "example": _BATCH}},
            },
            **_problems(400, 403, 408, 409, 413, 415, 422, 429, 500, 503),
        },
    }


def _list() -> dict[str, object]:
    return {
        "operationId": "listBatches",
        "tags": ["batches"],
        "summary": "List your batches",
        "description": "Newest first, in pages. Ended batches are kept for some days.",
        "parameters": [
            {
                "name": "limit",
                "in": "query",
                "description": "Batches on a page",
                "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": MAX_PAGE},
            },
            {
                "name": "cursor",
                "in": "query",
                "description": "`next_cursor` of the page before",
                "schema": {"type": "string"},
            },
        ],
        "responses": {
            "200": _ok("One page", _JSON, _ref("BatchList"), {"batches": [_BATCH], "next_cursor": None}),
            **_problems(400, 403, 500, 503),
        },
    }


def _read() -> dict[str, object]:
    return {
        "operationId": "readBatch",
        "tags": ["batches"],
        "summary": "See how far a batch is",
        "responses": {
            "200": _ok("The batch", _JSON, _ref("Batch"), _BATCH),
            **_problems(400, 403, 404, 500, 503),
        },
    }


def _events() -> dict[str, object]:
    return {
        "operationId": "followBatch",
        "tags": ["batches"],
        "summary": "Follow a batch to its end",
        "description": "Server-sent events: `event: progress` with the batch as JSON whenever it has changed, the "
        "last one at its end, then the connection ends. Comments keep a silent connection alive.",
        "responses": {
            "200": _ok("Events", EVENT_STREAM, {"type": "string"}, "event: progress\ndata: {…}\n\n"),
            **_problems(400, 403, 404, 500, 503),
        },
    }


def _change(verb: str, summary: str) -> dict[str, object]:
    return {
        "operationId": f"{verb}Batch",
        "tags": ["batches"],
        "summary": summary,
        "description": "Takes effect within a second; rows that have begun come to their ends. Can be repeated.",
        "responses": {
            "200": _ok("The batch", _JSON, _ref("Batch"), _BATCH),
            **_problems(400, 403, 404, 409, 500, 503),
        },
    }


def _results() -> dict[str, object]:
    row = {
        "number": 1,
        "reference": "licence 4711",
        "state": "issued",
        "serial": "5f1cc1f4b3a2907d6e8810f2a4b6c8de",
        "certificate": "-----BEGIN CERTIFICATE-----\nMIICyzCCAlGgAwIBAgIQX…\n-----END CERTIFICATE-----\n",
        "problem": None,
    }
    forms = {form: name for name, form in MEDIA_TYPES.items()}
    csv = f"CSV for spreadsheets, every cell inert: {', '.join(CSV_COLUMNS)}; the certificate is DER in base64"
    content: dict[str, Any] = {
        forms["ndjson"]: {"schema": _ref("ResultRow"), "example": row},
        forms["csv"]: {"schema": {"type": "string", "description": csv}},
        forms["zip"]: {"schema": {"type": "string", "description": "results.csv, and a PEM chain for each row"}},
    }
    return {
        "operationId": "readBatchResults",
        "tags": ["batches"],
        "summary": "Fetch what has become of each row",
        "description": "At any time; rows without an end are `pending`. Chosen by `format`, else by `Accept`, "
        "else NDJSON.",
        "parameters": [
            {"name": "format", "in": "query", "description": "The form", "schema": {"enum": list(get_args(Form))}}
        ],
        "responses": {
            "200": {"description": "Every row, in order", "headers": _request_id(), "content": content},
            **_problems(400, 403, 404, 500, 503),
        },
    }


def _id() -> dict[str, object]:
    return {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "Id of the batch",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "example": _ID,
    }


def _ok(description: str, media_type: str, schema: Mapping[str, object], example: object) -> dict[str, object]:
    return {
        "description": description,
        "headers": _request_id(),
        "content": {media_type: {"schema": schema, "example": example}},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _header(description: str, example: str) -> dict[str, object]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def _request_id() -> dict[str, object]:
    return {"X-Request-Id": _header("Yours if you sent one, else ours; in every log line", "0f8e6a1b2c3d4e5f")}


def _problems(*statuses: int) -> dict[str, object]:
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}
