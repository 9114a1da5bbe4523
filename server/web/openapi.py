def openapi_document(*, version: str) -> dict[str, object]:
    return {"openapi": "3.1.0", "info": {"title": "x", "version": version}}
