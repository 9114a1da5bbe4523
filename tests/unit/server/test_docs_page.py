"""The page for people: complete, self-contained, escaped."""

import copy
import re
from collections import Counter
from html.parser import HTMLParser
from typing import Any

import pytest

from server.web.docs_page import docs_page
from server.web.openapi import openapi_document
from server.web.problem import ALL_KINDS, Kind
from tests.support.profiles import OFFERED

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids[value or ""] += 1
            if name in {"href", "src"}:
                self.links.append(value or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def document() -> Any:
    return openapi_document(version="1.2.3", profiles=OFFERED)


@pytest.fixture(scope="module")
def page(document: Any) -> Page:
    return Page(docs_page(document, ALL_KINDS))


def test_each_problem_type_points_at_one_place(page: Page) -> None:
    for kind in ALL_KINDS:
        assert page.ids[kind.slug] == 1
    assert max(page.ids.values()) == 1


def test_links_stay_here_and_arrive(page: Page) -> None:
    for link in page.links:
        assert link == "/openapi.json" or (link.startswith("#") and page.ids[link[1:]] == 1), link


def test_nothing_is_fetched_or_run(page: Page) -> None:
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert not [name for name in page.attributes if name.startswith("on")]


def test_everything_is_on_it(page: Page, document: Any) -> None:
    for path, item in document["paths"].items():
        assert path in page.text
        for method, operation in item.items():
            if method != "parameters":
                assert page.ids[operation["operationId"]] == 1
                assert operation["summary"] in page.text
    for name, schema in document["components"]["schemas"].items():
        assert page.ids[f"schema-{name}"] == 1
        for field in schema.get("properties", ()):
            assert field in page.text


def test_values_stand_there_as_callers_write_them(page: Page) -> None:
    assert "None" not in page.text
    assert "{'" not in page.text
    assert '{"C": "LA", "O": "ກະຊວງການເງິນ", "CN": "e-licence"}' in page.text
    assert "one of aACompromise" in page.text  # every reason of a revocation


def test_hostile_words_stay_words(document: Any) -> None:
    evil = '<script>alert("1")</script>`<b>`'
    hostile = copy.deepcopy(document)
    hostile["info"] |= {"title": evil, "version": evil, "description": evil}
    path = hostile["paths"]["/v1/certificates"]
    path["post"] |= {"summary": evil, "description": evil, "operationId": 'x" onload="y'}
    path["get"]["parameters"] = [{"name": evil, "in": evil, "description": evil, "schema": {"enum": [evil]}}]
    hostile["components"]["schemas"] = {evil: {"description": evil, "properties": {evil: {"pattern": evil}}}}
    html = docs_page(hostile, [Kind(slug='" onload="z', status=400, title=evil, meaning=evil)])
    page = Page(html)
    assert not set(page.tags) & {"script", "b"}
    assert "onload" not in page.attributes
    assert page.text.count('<script>alert("1")</script>') > 8
    assert not re.search(r"<script", html)
