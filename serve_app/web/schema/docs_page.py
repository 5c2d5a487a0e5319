"""The OpenAPI document as a page that people can read, with nothing to load from elsewhere."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from shlex import quote
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --accent: #0a7d5a; }
@media (prefers-color-scheme: dark) { :root { --accent: #4cc9a0; } }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
a { color: var(--accent) }
h1 { margin-bottom: .2rem } h2 { margin: 2rem 0 .6rem; font-size: 1.25rem }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem }
code, pre { font: .87em/1.5 ui-monospace, monospace }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: .4rem; overflow-x: auto }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .4rem 0;
          padding: .45rem .9rem }
summary { cursor: pointer } summary b { color: var(--accent); display: inline-block; width: 3.2rem }
table { border-collapse: collapse; width: 100%; margin-top: .8rem }
td, th { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0;
         border-bottom: 1px solid var(--line) }
th { font-weight: 600 } td:nth-child(2) { max-width: 22rem; overflow-wrap: anywhere }
details p { margin: .4rem 0; font-size: .9em } .soft { opacity: .7 } .must { color: var(--accent) }
"""
_KEY = "EMBEDSERVE_API_KEY"
#: Bounds from here on are those of the machine's numbers, and tell nobody anything.
_HUGE = 2**31 - 1


def page(document: Mapping[str, Any], address: str) -> str:
    """HTML of a document.

    Args:
        document: as `openapi` makes it.
        address: where the service is, for the commands to copy.
    """
    info = document["info"]
    keys = {} not in document["security"]
    by_dialect: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for i, tag in enumerate(operation["tags"]):
                shown = "".join(_operation(path, method, operation, address, i, keys))
                by_dialect.setdefault(tag, []).append(shown)
    tags = [tag["name"] for tag in document["tags"]]
    links = "".join(f'<a href="#{_anchor(tag)}">{escape(tag)}</a>' for tag in tags)
    sections = "".join(
        f'<h2 id="{_anchor(tag)}">{escape(tag)}</h2>{"".join(by_dialect[tag])}' for tag in tags
    )
    told = f"<p>Most routes need a key: <code>export {_KEY}=…</code></p>" if keys else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small class=soft>{escape(info['version'])}</small></h1>"
        f"<p>{_prose(info['description'])}</p>{told}"
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>'
        f"<nav>{links}</nav>{sections}</body></html>"
    )


def _anchor(tag: str) -> str:
    return re.sub(r"\W+", "-", tag.lower())


def _operation(
    path: str, method: str, operation: Mapping[str, Any], address: str, i: int, keys: bool
) -> Iterator[str]:
    """What its dialect number `i` has to know of it."""
    yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> "
    yield f"<span class=soft>{_prose(operation['summary'])}</span></summary>"
    fields = [*_parameters(operation)]
    command = f"curl {'-X POST ' if method == 'post' else ''}{_url(address, path, operation)}"
    if keys and operation.get("security") != [{}]:
        command += f' -H "Authorization: Bearer ${_KEY}"'
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        schemas = body["schema"].get("anyOf", [body["schema"]])
        fields = [*_fields(schemas[i]), *fields]
        data = json.dumps(list(body["examples"].values())[i]["value"], ensure_ascii=False)
        command = command.replace("-X POST ", "") + (
            f" \\\n  -H 'Content-Type: application/json' \\\n  -d {quote(data)}"
        )
    if fields:
        yield "<table><tr><th>field<th>type<th>what it does</tr>"
        yield f"{''.join(fields)}</table>"
    answers = (
        f'<abbr title="{escape(answer["description"])}">{escape(status)}</abbr>'
        for status, answer in operation["responses"].items()
    )
    yield f"<pre>{escape(command)}</pre><p class=soft>Answers: {' '.join(answers)}</p></details>"


def _url(address: str, path: str, operation: Mapping[str, Any]) -> str:
    values = {p["name"]: p["schema"]["enum"][0] for p in _of_path(operation)}
    return quote(address + re.sub(r"{(\w+)}", lambda found: values[found[1]], path))


def _of_path(operation: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [p for p in operation.get("parameters", ()) if p["in"] == "path"]


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    for one in operation.get("parameters", ()):
        what = one.get("description", "A part of the path.")
        yield _row(one["name"], one["schema"], one.get("required", False), what, one["in"])


def _fields(schema: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """A row for each field, and for each of those inside it."""
    for name, field in schema["properties"].items():
        must = name in schema.get("required", ())
        yield _row(within + name, field, must, field.get("description", ""))
        for inner in field.get("anyOf", [field]):
            many = inner.get("type") == "array"
            inner = inner.get("items", {}) if many else inner
            if "properties" in inner:
                yield from _fields(inner, f"{within}{name}{'[]' if many else ''}.")


def _row(
    name: str, schema: Mapping[str, Any], must: bool, description: str, place: str = ""
) -> str:
    where = f" <span class=soft>{escape(place)}</span>" if place else ""
    mark = "<span class=must title=required> *</span>" if must else ""
    kind = f"<code>{escape(_kind(schema))}</code>"
    return (
        f"<tr><td><code>{escape(name)}</code>{mark}{where}<td>{kind}<td>{_prose(description)}</tr>"
    )


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema as a type."""
    if "anyOf" in schema:
        kinds = (_kind(one) for one in schema["anyOf"] if one.get("type") != "null")
        return " | ".join(sorted(dict.fromkeys(kinds), key=len))
    if "enum" in schema or "const" in schema:
        return " | ".join(json.dumps(one) for one in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array" if schema.get("maxItems") == 0:
            return "[]"
        case "array":
            inner = _kind(schema["items"])
            return f"({inner})[]" if " | " in inner else f"{inner}[]"
        case "object":
            return "{" + ", ".join(schema["properties"]) + "}"
        case "integer" if schema.get("maximum", _HUGE) < _HUGE:
            return f"integer {schema['minimum']}…{schema['maximum']}"
        case kind:
            return str(kind or "anything")


def _prose(text: str) -> str:
    """Text with `code` in it."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
