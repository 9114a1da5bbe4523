"""The OpenAPI document as a page for people: one HTML file, no script, nothing from any other host."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from server.web.problem import Kind

_METHODS = frozenset({"get", "post", "put", "patch", "delete"})
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --faint: #8881; --accent: #1668b8 }
@media (prefers-color-scheme: dark) { :root { --accent: #7db7f5 } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; display: grid;
  grid-template-columns: 17rem minmax(0, 1fr) }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1.5rem 1rem;
  border-right: 1px solid var(--line) }
nav a { display: block; padding: .15rem 0; text-decoration: none; font-size: .9rem }
nav h2 { font-size: .75rem; text-transform: uppercase; letter-spacing: .06em;
  margin: 1.2rem 0 .3rem; border: 0; padding: 0 }
main { padding: 1.5rem clamp(1rem, 4vw, 3.5rem) 6rem; max-width: 62rem }
a { color: var(--accent) }
h1 { margin: 0 0 .2rem } h1 small { font-weight: 400; font-size: 1rem; opacity: .7 }
h2 { margin: 3rem 0 1rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line) }
h3 { margin: 2.4rem 0 .4rem; scroll-margin-top: 1rem } h4 { margin: 1.2rem 0 .3rem; font-size: .95rem }
code, pre { font: .86em/1.5 ui-monospace, monospace }
code { background: var(--faint); padding: .1em .3em; border-radius: 4px }
pre { background: var(--faint); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; overflow-x: auto }
pre code { background: none; padding: 0 }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; font-size: .92rem }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0;
  border-bottom: 1px solid var(--line) }
th { font-weight: 600; white-space: nowrap }
.method { display: inline-block; min-width: 3.6rem; font: 700 .75rem/1.9 ui-monospace, monospace;
  text-align: center; border: 1px solid var(--accent); color: var(--accent); border-radius: 4px;
  margin-right: .5rem; vertical-align: middle }
@media (max-width: 50rem) { body { display: block } nav { position: static; height: auto; border: 0 } }
"""
_FIRST_CALL = """\
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\
        -keyout www.key -subj /CN=www.example.gov -out www.csr
curl --cert var/clients/demo/cert.pem --key var/clients/demo/key.pem --cacert var/ca/root.pem \\
     -H 'Content-Type: application/pkcs10' --data-binary @www.csr \\
     'https://127.0.0.1:8443/v1/certificates?profile=tls-server' -o www.pem"""


def docs_page(document: Mapping[str, Any], kinds: Sequence[Kind]) -> str:
    """Return the page. Each problem kind has its slug as id, for `type` is `/docs#slug` (RFC 9457 §3.1.1)."""
    info = document["info"]
    operations = [
        (path, method, item[method], item.get("parameters", []))
        for path, item in document["paths"].items()
        for method in item
        if method in _METHODS
    ]
    schemas = document["components"]["schemas"]
    body = [
        f"<h1>{escape(info['title'])} <small>API {escape(info['version'])}</small></h1>",
        *(f"<p>{_prose(paragraph)}</p>" for paragraph in info["description"].split("\n\n")),
        '<h2 id="start">First call</h2>',
        f"<p>With the demo client that <code>make run</code> enrols:</p>{_code(_FIRST_CALL)}",
        '<h2 id="operations">Operations</h2>',
        *(_operation(document, *operation) for operation in operations),
        '<h2 id="schemas">Schemas</h2>',
        *(_schema(name, schema) for name, schema in schemas.items()),
        '<h2 id="problems">Problems</h2>',
        "<p>Errors are <code>application/problem+json</code> (RFC 9457); <code>type</code> points here.</p>",
        *(_problem(kind) for kind in kinds),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head>\n"
        f"<body>{_navigation(operations, schemas, kinds)}\n<main>{''.join(body)}</main></body></html>\n"
    )


def _navigation(
    operations: Sequence[tuple[str, str, Mapping[str, Any], object]],
    schemas: Mapping[str, Any],
    kinds: Sequence[Kind],
) -> str:
    groups = {
        "Operations": [(operation["operationId"], operation["summary"]) for _, _, operation, _ in operations],
        "Schemas": [(f"schema-{name}", name) for name in schemas],
        "Problems": [(kind.slug, kind.slug) for kind in kinds],
    }
    links = ['<a href="#start">First call</a>', '<a href="/openapi.json">openapi.json</a>']
    for title, entries in groups.items():
        links.append(f"<h2>{title}</h2>")
        links.extend(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in entries)
    return f"<nav>{''.join(links)}</nav>"


def _operation(
    document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any], shared: Sequence[Any]
) -> str:
    badge = f'<span class="method">{method.upper()}</span>'
    parts = [
        f'<h3 id="{escape(operation["operationId"])}">{badge}<code>{escape(path)}</code></h3>',
        f"<p><strong>{escape(operation['summary'])}.</strong> {_prose(operation.get('description', ''))}</p>",
    ]
    parameters = [*shared, *operation.get("parameters", [])]
    if parameters:
        rows = [(_name(one), escape(one["in"]), _type(one["schema"]), _parameter(one)) for one in parameters]
        parts.append("<h4>Parameters</h4>" + _table(("name", "in", "type", "meaning"), rows))
    body = operation.get("requestBody")
    if body:
        need = "required" if body["required"] else "may be left out"
        parts.append(f"<h4>Request body ({need})</h4>" + "".join(_media(*one) for one in body["content"].items()))
    parts.append("<h4>Answers</h4>")
    for status, response in operation["responses"].items():
        parts.append(_response(document, status, response))
    return "".join(parts)


def _response(document: Mapping[str, Any], status: str, response: Mapping[str, Any]) -> str:
    if "$ref" in response:
        target = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        return f"<p><code>{status}</code> {_prose(target['description'])}</p>"
    headers = [
        (f"<code>{escape(name)}</code>", _prose(h["description"]))
        for name, h in response.get("headers", {}).items()
    ]
    return (
        f"<p><code>{status}</code> {_prose(response['description'])}</p>"
        + (_table(("header", "meaning"), headers) if headers else "")
        + "".join(_media(*one) for one in response["content"].items())
    )


def _media(media_type: str, content: Mapping[str, Any]) -> str:
    schema = content["schema"]
    example = content.get("example")
    text = f"<p><code>{escape(media_type)}</code>: {_type(schema)} {_prose(schema.get('description', ''))}</p>"
    if example is None:
        return text
    return text + _code(example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False))


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = [
        (
            f"<code>{escape(field)}</code>" + ("" if field in required else "<br><small>optional</small>"),
            _type(one),
            _meaning(one),
        )
        for field, one in schema.get("properties", {}).items()
    ]
    table = _table(("field", "type", "meaning"), rows) if rows else f"<p>{_type(schema)}</p>"
    return (
        f'<h3 id="schema-{escape(name)}">{escape(name)}</h3><p>{_prose(schema.get("description", ""))}</p>{table}'
    )


def _problem(kind: Kind) -> str:
    return (
        f'<h3 id="{escape(kind.slug)}">{escape(kind.title)}</h3>'
        f"<p><code>{kind.status}</code> <code>/docs#{escape(kind.slug)}</code><br>{_prose(kind.meaning)}</p>"
    )


def _name(parameter: Mapping[str, Any]) -> str:
    need = "" if parameter.get("required") else "<br><small>optional</small>"
    return f"<code>{escape(parameter['name'])}</code>{need}"


def _parameter(parameter: Mapping[str, Any]) -> str:
    facts = _meaning(parameter["schema"])
    return _prose(parameter["description"]) + (f"<br><small>{facts}</small>" if facts else "")


def _type(schema: Mapping[str, Any]) -> str:
    """Name the type of a schema; a reference becomes a link."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return "one of " + ", ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    return escape(str(schema.get("format") or schema.get("type", "")))


def _meaning(schema: Mapping[str, Any]) -> str:
    """Say what a schema says beyond its type: description, bounds, default, example."""
    bounds = {
        "minimum": "from",
        "maximum": "to",
        "maxLength": "at most this long:",
        "pattern": "pattern",
        "default": "default",
    }
    inner = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    facts = [_prose(schema["description"])] if "description" in schema else [_meaning(one) for one in inner]
    facts += [
        f"{word} <code>{_json(schema[name])}</code>"
        for name, word in bounds.items()
        if schema.get(name) is not None  # null, as what is optional is by default, says nothing
    ]
    facts += [f"e.g. <code>{_json(value)}</code>" for value in schema.get("examples", ())]
    return "; ".join(fact for fact in facts if fact)


def _json(value: object) -> str:
    """Write a value as it stands in requests and answers; a text without its quotes."""
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{lines}</table>"


def _code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def _prose(text: str) -> str:
    """Escape, and set what is between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
