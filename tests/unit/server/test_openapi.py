"""The OpenAPI document against the code that it describes."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from server.enrol import messages
from server.enrol.batches import BatchApi
from server.enrol.client_rest import ClientApi
from server.enrol.rest import FILTERS, RestApi
from server.web.docs import DocsApi
from server.web.openapi import openapi_document
from server.web.problem import ALL_KINDS
from tests.support.profiles import BUILT_IN, OFFERED


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads(msgspec.json.encode(openapi_document(version="1.2.3", profiles=OFFERED)))


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, item in document["paths"].items():
        for method in item:
            if method != "parameters":
                yield path, method, item[method]


def test_document_is_openapi_3_1(document: Any) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == "1.2.3"


def test_every_route_is_described_and_no_other(document: Any) -> None:
    routes: list[web.RouteDef] = [
        *RestApi.routes(object.__new__(RestApi)),
        *ClientApi.routes(object.__new__(ClientApi)),
        *BatchApi.routes(object.__new__(BatchApi)),
        *DocsApi(version="1").routes(),
    ]
    assert {(path, method.upper()) for path, method, _ in operations(document)} == {
        (route.path, route.method) for route in routes
    }


def test_times_are_times_and_words_have_no_indentation(document: Any) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["Certificate"]["properties"]["not_after"]["format"] == "date-time"
    assert schemas["Batch"]["properties"]["finished_at"]["anyOf"][0]["format"] == "date-time"
    assert not [name for name, schema in schemas.items() if "\n " in schema["description"]]


def test_filters_are_those_of_the_search(document: Any) -> None:
    search = document["paths"]["/v1/certificates"]["get"]
    assert {parameter["name"] for parameter in search["parameters"]} == FILTERS


def test_profiles_are_those_that_a_client_may_ask_for(document: Any) -> None:
    offered = [name for name, profile in BUILT_IN.items() if not profile.internal]
    assert document["components"]["schemas"]["CertificateRequest"]["properties"]["profile"]["enum"] == offered
    create = document["paths"]["/v1/certificates"]["post"]
    assert create["parameters"][0]["schema"]["enum"] == offered


def test_every_kind_of_problem_is_named_under_its_status(document: Any) -> None:
    responses = document["components"]["responses"]
    for kind in ALL_KINDS:
        assert f"`{kind.slug}`" in responses[f"Problem{kind.status}"]["description"]
    assert [name for name, response in responses.items() if "headers" in response] == ["Problem429", "Problem503"]


def test_operations_that_write_can_be_late_large_or_refused(document: Any) -> None:
    for _, method, operation in operations(document):
        if operation["tags"] == ["documentation"]:
            continue
        assert {"400", "403", "500", "503"} <= set(operation["responses"])
        assert ("requestBody" in operation) == ("413" in operation["responses"])
        assert "requestBody" not in operation or method == "post"
        assert "X-Request-Id" in next(iter(operation["responses"].values()))["headers"]


def test_names_of_operations_are_unique(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def examples(node: Any) -> Iterator[tuple[Any, Any]]:
    """Find every (schema, example) of a media type or parameter."""
    if isinstance(node, dict):
        if "schema" in node and "example" in node:
            yield node["schema"], node["example"]
        for inner in node.values():
            yield from examples(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from examples(inner)


def test_examples_are_what_their_schemas_say(document: Any) -> None:
    found = list(examples(document))
    assert len(found) > 10
    for schema, example in found:
        whole = {**schema, "components": document["components"]}  # where its references point
        Draft202012Validator(whole).validate(example)


def test_example_of_a_certificate_has_its_wire_form(document: Any) -> None:
    answer = document["paths"]["/v1/certificates"]["post"]["responses"]["201"]["content"]["application/json"]
    certificate = msgspec.convert(answer["example"], messages.Certificate)
    assert certificate.not_after > certificate.not_before
