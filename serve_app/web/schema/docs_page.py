"""The page at `/docs`: an OpenAPI document as HTML that loads nothing else.

OpenAPI document → one section for each dialect → per route: fields, a curl command, statuses.
"""

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from shlex import quote
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --fill: #8882; --accent: #0a7d5a; }
@media (prefers-color-scheme: dark) { :root { --accent: #4cc9a0; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
a { color: var(--accent) }
h1 { margin-bottom: .2rem } h2 { margin: 2rem 0 .6rem; font-size: 1.25rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
code, pre { font: .87em/1.5 ui-monospace, monospace }
pre { background: var(--fill); padding: .7rem 1rem; border-radius: .4rem; overflow-x: auto }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0;
          padding: .45rem .9rem }
summary { cursor: pointer } summary b { color: var(--accent); display: inline-block; width: 3.2rem }
table { border-collapse: collapse; width: 100%; margin-top: .8rem }
td, th { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
         border-bottom: 1px solid var(--line) }
th { font-weight: 600 } td:nth-child(2) { max-width: 22rem; overflow-wrap: anywhere }
details p { margin: .4rem 0; font-size: .9em }
.muted { opacity: .7 } .required { color: var(--accent) }
"""
_KEY_VARIABLE = "EMBEDSERVE_API_KEY"
#: A maximum from here on is that of the integer type, and is not shown.
_TYPE_BOUND = 2**31 - 1


def docs_html(document: Mapping[str, Any], base_url: str) -> str:
    """Returns an OpenAPI document as an HTML page.

    Args:
        document: returned by `openapi`.
        base_url: address of the service in the curl commands.
    """
    info = document["info"]
    needs_key = {} not in document["security"]
    by_dialect: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for i, dialect in enumerate(operation["tags"]):
                parts = _operation_html(path, method, operation, base_url, i, needs_key)
                by_dialect.setdefault(dialect, []).append("".join(parts))
    dialects = [tag["name"] for tag in document["tags"]]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in dialects)
    sections = "".join(
        f'<h2 id="{_anchor(name)}">{escape(name)}</h2>{"".join(by_dialect[name])}'
        for name in dialects
    )
    key_note = (
        f"<p>Most routes require an API key: <code>export {_KEY_VARIABLE}=…</code></p>"
        if needs_key
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small class=muted>{escape(info['version'])}</small></h1>"
        f"<p>{_code_spans(info['description'])}</p>{key_note}"
        '<p>OpenAPI document: <a href="openapi.json">openapi.json</a></p>'
        f"<nav>{links}</nav>{sections}</body></html>"
    )


def _anchor(dialect: str) -> str:
    return re.sub(r"\W+", "-", dialect.lower())


def _operation_html(
    path: str,
    method: str,
    operation: Mapping[str, Any],
    base_url: str,
    dialect_index: int,
    needs_key: bool,
) -> Iterator[str]:
    """Yields the HTML of an operation, for one of the dialects that share it."""
    yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
    yield f"<span class=muted>{_code_spans(operation['summary'])}</span></summary>"
    rows = [*_parameter_rows(operation)]
    command = f"curl {'-X POST ' if method == 'post' else ''}{_url(base_url, path, operation)}"
    if needs_key and operation.get("security") != [{}]:
        command += f' -H "Authorization: Bearer ${_KEY_VARIABLE}"'
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        schemas = body["schema"].get("anyOf", [body["schema"]])
        rows = [*_field_rows(schemas[dialect_index]), *rows]
        example = list(body["examples"].values())[dialect_index]["value"]
        command = command.replace("-X POST ", "") + (
            " \\\n  -H 'Content-Type: application/json'"
            f" \\\n  -d {quote(json.dumps(example, ensure_ascii=False))}"
        )
    if rows:
        yield "<table><tr><th>Field<th>Type<th>Description</tr>"
        yield f"{''.join(rows)}</table>"
    statuses = (
        f'<abbr title="{escape(response["description"])}">{escape(status)}</abbr>'
        for status, response in operation["responses"].items()
    )
    yield f"<pre>{escape(command)}</pre>"
    yield f"<p class=muted>Statuses: {' '.join(statuses)}</p></details>"


def _url(base_url: str, path: str, operation: Mapping[str, Any]) -> str:
    """Returns the URL of a path: path parameters have their first allowed value.

    It has the query parameters that have an example.
    """
    parameters = operation.get("parameters", ())
    values = {p["name"]: p["schema"]["enum"][0] for p in parameters if p["in"] == "path"}
    query = "&".join(
        f"{p['name']}={json.dumps(p['example'])}" for p in parameters if "example" in p
    )
    url = base_url + re.sub(r"{(\w+)}", lambda match: values[match[1]], path)
    return quote(f"{url}?{query}" if query else url)


def _parameter_rows(operation: Mapping[str, Any]) -> Iterator[str]:
    for parameter in operation.get("parameters", ()):
        yield _table_row(
            parameter["name"],
            parameter["schema"],
            required=parameter.get("required", False),
            description=parameter.get("description", "Path parameter."),
            location=parameter["in"],
        )


def _field_rows(schema: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields a table row for each property, nested ones included."""
    for name, field in schema["properties"].items():
        yield _table_row(
            prefix + name,
            field,
            required=name in schema.get("required", ()),
            description=field.get("description", ""),
        )
        for variant in field.get("anyOf", [field]):
            is_array = variant.get("type") == "array"
            item = variant.get("items", {}) if is_array else variant
            if "properties" in item:
                yield from _field_rows(item, f"{prefix}{name}{'[]' if is_array else ''}.")


def _table_row(
    name: str, schema: Mapping[str, Any], *, required: bool, description: str, location: str = ""
) -> str:
    location = f" <span class=muted>{escape(location)}</span>" if location else ""
    mark = "<span class=required title=required> *</span>" if required else ""
    return (
        f"<tr><td><code>{escape(name)}</code>{mark}{location}"
        f"<td><code>{escape(_type_name(schema))}</code><td>{_code_spans(description)}</tr>"
    )


def _type_name(schema: Mapping[str, Any]) -> str:
    """Returns a schema as a short type, such as `string | integer[]`."""
    if "anyOf" in schema:
        names = (
            _type_name(variant) for variant in schema["anyOf"] if variant.get("type") != "null"
        )
        return " | ".join(sorted(dict.fromkeys(names), key=len))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(json.dumps(value) for value in values)
    match schema.get("type"):
        case "array" if schema.get("maxItems") == 0:
            return "[]"
        case "array":
            item = _type_name(schema["items"])
            return f"({item})[]" if " | " in item else f"{item}[]"
        case "object":
            return "{" + ", ".join(schema["properties"]) + "}"
        case "integer" if schema.get("maximum", _TYPE_BOUND) < _TYPE_BOUND:
            return f"integer {schema['minimum']}…{schema['maximum']}"
        case name:
            return str(name or "any")


def _code_spans(text: str) -> str:
    """Returns escaped text with `code` in backticks as code elements."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
