"""Parts that several operations of the OpenAPI document share."""

JSON = "application/json"
CSR_PEM = (
    "-----BEGIN CERTIFICATE REQUEST-----\nMIHTMHsCAQAwGTEXMBUGA1UEAwwOd3d3…\n-----END CERTIFICATE REQUEST-----\n"
)
CERTIFICATE_PEM = "-----BEGIN CERTIFICATE-----\nMIICyzCCAlGgAwIBAgIQX…\n-----END CERTIFICATE-----\n"
CERTIFICATE = {
    "serial": "5f1cc1f4b3a2907d6e8810f2a4b6c8de",
    "status": "good",
    "profile": "tls-server@2",
    "subject": "CN=www.example.gov",
    "dns_names": ["www.example.gov"],
    "not_before": "2026-11-23T11:00:00Z",
    "not_after": "2027-06-11T10:59:59Z",
    "certificate": CERTIFICATE_PEM,
    "chain": [CERTIFICATE_PEM],
}


def idempotency_key() -> dict[str, object]:
    """Return the Parameter Object of the header."""
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "One for each certificate that you want. The same request with the same key gives "
        "the same certificate; another request with it is refused.",
        "schema": {"type": "string", "pattern": "^[\\x21-\\x7e]{1,128}$"},
        "example": "9f3d1c52-6a0e-4a1b-8a53-0d4b8a1d0b7e",
    }


def serial() -> dict[str, object]:
    """Return the Parameter Object of a path's serial number."""
    return {
        "name": "serial",
        "in": "path",
        "required": True,
        "description": "Serial number, hexadecimal",
        "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{2,40}$"},
        "example": CERTIFICATE["serial"],
    }


def ref(name: str) -> dict[str, str]:
    """Return a Reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def header(description: str, example: str) -> dict[str, object]:
    """Return a Header Object."""
    return {"description": description, "schema": {"type": "string"}, "example": example}


def request_id() -> dict[str, object]:
    """Return the header that every answer has."""
    return {"X-Request-Id": header("Yours if you sent one, else ours; in every log line", "0f8e6a1b2c3d4e5f")}


def problems(*statuses: int) -> dict[str, object]:
    """Return References to the problems of these statuses."""
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}
