"""The document against what the application does, and the page against the document."""

import html
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import InferenceError, Overloaded, Unavailable
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialect import (
    Dialect,
    DialectEndpoint,
    DialectView,
    all_views,
    endpoints_by_path,
)
from serve_app.web.dialects import load_dialects
from serve_app.web.endpoint import Endpoint, ViewRoute
from serve_app.web.schema.docs_page import docs_html
from serve_app.web.schema.fields import (
    BoolField,
    DimensionsField,
    EnumField,
    Field,
    InputTypeField,
    IntField,
    ModelField,
    ObjectField,
    SchemaContext,
    StringField,
    object_example,
)
from serve_app.web.schema.openapi import openapi
from tests.fakes import DIM, SPEC, FakeBackend
from tests.fuzz import in_process
from tests.malformed_requests import Request

#: With it every type of vector is there.
RANGES = np.stack([np.full(DIM, -1, np.float32), np.full(DIM, 1, np.float32)])
CALIBRATED = replace(SPEC, quantization_ranges=RANGES)
DIALECTS = load_dialects()
BY_PATH = endpoints_by_path(DIALECTS)
VIEWS = all_views(DIALECTS)
ENDPOINTS = [route for candidates in BY_PATH.values() for route in candidates]
SUPPORTED = [route for route in ENDPOINTS if route.endpoint.reply_schema]
UNSUPPORTED = [route for route in ENDPOINTS if not route.endpoint.reply_schema]
TYPE = ("content-type", b"application/json")


def route_id(route: DialectEndpoint | DialectView) -> str:
    return f"{route[1].path} {route.dialect.name}"


each_route = pytest.mark.parametrize(
    ("dialect", "endpoint"), SUPPORTED, ids=[route_id(route) for route in SUPPORTED]
)
each_endpoint = pytest.mark.parametrize(
    "endpoint",
    [endpoint for _, endpoint in SUPPORTED],
    ids=[route_id(route) for route in SUPPORTED],
)
each_view = pytest.mark.parametrize(
    "view", [view for _, view in VIEWS], ids=[route_id(route) for route in VIEWS]
)


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(EmbedService(CALIBRATED, lookup, IngressSettings()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def schemas(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (parameter["schema"] for parameter in operation.get("parameters", ()))
    holders = [operation.get("requestBody", {}), *operation["responses"].values()]
    for holder in holders:
        yield from (content["schema"] for content in holder.get("content", {}).values())


def check(reply: httpx2.Response, document: dict[str, Any], path: str, method: str) -> None:
    """A reply is one of those that the document tells of."""
    told = document["paths"][path][method]["responses"].get(str(reply.status_code))
    assert told is not None, f"{reply.status_code} is not among the answers"
    media_type = reply.headers.get("content-type", "").partition(";")[0]
    assert set(told.get("content", {})) >= {media_type} - {""}
    for name, header in told.get("headers", {}).items():
        assert name in reply.headers or not header["required"], name
    if media_type == "application/json":
        schema = told["content"][media_type]["schema"]
        whole = {**schema, "components": document["components"]}
        Draft202012Validator(whole).validate(reply.json())


def test_it_tells_of_every_route_and_of_nothing_else(document: dict[str, Any]) -> None:
    app = create_app(EmbedService(SPEC, FakeBackend(), IngressSettings()))
    served = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert len(app.routes) >= len(served)
    assert {(path, method) for path, method, _ in operations(document)} == served


def test_it_is_well_formed(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    known = {tag["name"] for tag in document["tags"]}
    for _, _, operation in operations(document):
        assert set(operation["tags"]) <= known
        for schema in schemas(operation):
            Draft202012Validator.check_schema(schema)


@each_route
def test_each_example_is_answered_as_documented(
    client: TestClient, document: dict[str, Any], dialect: Dialect, endpoint: Endpoint
) -> None:
    content = document["paths"][endpoint.path]["post"]["requestBody"]["content"]
    told = content["application/json"]
    body = told["examples"][dialect.name]["value"]
    assert body == object_example(endpoint.fields)
    Draft202012Validator(told["schema"]).validate(body)
    reply = client.post(endpoint.path, json=body)
    assert reply.status_code == 200, reply.text
    check(reply, document, endpoint.path, "post")
    Draft202012Validator(endpoint.reply_schema).validate(reply.json())


@pytest.mark.parametrize(
    ("dialect", "endpoint"), UNSUPPORTED, ids=[route_id(route) for route in UNSUPPORTED]
)
def test_each_refusing_route_refuses_as_documented(
    client: TestClient, document: dict[str, Any], dialect: Dialect, endpoint: Endpoint
) -> None:
    reply = client.post(endpoint.path, json=object_example(endpoint.fields))
    assert 400 <= reply.status_code < 500
    check(reply, document, endpoint.path, "post")
    Draft202012Validator(dialect.error_schema).validate(reply.json())
    assert "200" not in document["paths"][endpoint.path]["post"]["responses"] or any(
        other.reply_schema for _, other in BY_PATH[endpoint.path]
    )


FAULTS = [Overloaded("full", 7), InferenceError("broken"), Unavailable("gone"), ZeroDivisionError()]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@each_endpoint
def test_faults_are_told_as_documented(
    client: TestClient,
    lookup: FakeBackend,
    document: dict[str, Any],
    endpoint: Endpoint,
    fault: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*args: object) -> None:
        raise fault

    for name in ("embed", "tokenize", "decode", "embed_tokens"):
        monkeypatch.setattr(lookup, name, fail)
    reply = client.post(endpoint.path, json=object_example(endpoint.fields))
    assert reply.status_code >= 424
    check(reply, document, endpoint.path, "post")


@each_view
def test_each_view_is_as_documented(
    client: TestClient, document: dict[str, Any], view: ViewRoute
) -> None:
    path = re.sub(r":path(?=})", "", view.path)
    for name in (SPEC.name, "other"):
        reply = client.request(view.method, path.replace("{name}", name))
        assert reply.status_code in ((200, 404) if "{" in path else (200,)), reply.text
        check(reply, document, path, view.method.lower())
    if view.media_type == "application/json":
        reply = client.request(view.method, path.replace("{name}", SPEC.name))
        Draft202012Validator(view.reply_schema).validate(reply.json())


@each_view
def test_each_view_of_a_sick_service_is_as_documented(
    client: TestClient, lookup: FakeBackend, document: dict[str, Any], view: ViewRoute
) -> None:
    lookup.error = Unavailable("gone")
    lookup.cache = Unavailable("gone")
    path = re.sub(r":path(?=})", "", view.path)
    reply = client.request(view.method, path.replace("{name}", SPEC.name))
    assert reply.status_code in (200, 503)
    check(reply, document, path, view.method.lower())


@each_endpoint
def test_vectors_as_bytes_are_told_of_where_they_are(
    client: TestClient, document: dict[str, Any], endpoint: Endpoint
) -> None:
    body, accept = object_example(endpoint.fields), {"accept": "application/octet-stream"}
    reply = client.post(endpoint.path, json=body, headers=accept)
    check(reply, document, endpoint.path, "post")
    content = document["paths"][endpoint.path]["post"]["responses"]["200"]["content"]
    raw = reply.headers["content-type"] == "application/octet-stream"
    assert raw == ("application/octet-stream" in content)


@pytest.mark.parametrize("path", ["/", "/embed", "/health", "/docs", "/v1/models"])
def test_a_wrong_method_is_told_the_documented_ones(
    client: TestClient, document: dict[str, Any], path: str
) -> None:
    reply = client.delete(path)
    assert reply.status_code == 405
    allowed = {method.lower() for method in reply.headers["allow"].split(", ")}
    assert allowed - {"head"} == set(document["paths"][path])


class Recorder(dict[str, Any]):
    """An object that knows which of its fields were asked for; so do those inside it."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__({name: recorded(value) for name, value in given.items()})
        self.read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.read.add(str(name))
        return super().__contains__(name)


def recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return Recorder(value)
    return [recorded(item) for item in value] if isinstance(value, list) else value


def full(fields: tuple[Field, ...], switch: bool | None) -> dict[str, Any]:
    """A body with every field: flags as told, others null or as in the example."""
    body: dict[str, Any] = {}
    for field in fields:
        if isinstance(field, ObjectField) and (field.required or not field.many):
            inner = full(field.fields, switch)
            body[field.name] = [inner] if field.many else inner
        elif field.required or field.exclusive_with:
            body[field.name] = field.example()
        else:
            body[field.name] = switch if type(field) is BoolField else None
    return body


def drift(fields: tuple[Field, ...], body: Recorder) -> Iterator[str]:
    declared = {field.name for field in fields}
    yield from (f"{name} is read, not declared" for name in body.read - declared)
    yield from (f"{name} is declared, not read" for name in declared - body.read)
    for field in fields:
        if isinstance(field, ObjectField):
            given = dict(body).get(field.name)
            for inner in given if isinstance(given, list) else [given]:
                if inner is not None:
                    yield from drift(field.fields, inner)


@pytest.mark.parametrize("switch", [None, True, False])
@each_endpoint
def test_what_is_declared_is_read_and_nothing_else(endpoint: Endpoint, switch: bool | None) -> None:
    body = Recorder(full(endpoint.fields, switch))
    endpoint.parse(body, SPEC)
    assert list(drift(endpoint.fields, body)) == []


@each_endpoint
def test_a_body_with_nothing_but_what_it_must_have_is_read_by_declared_fields(
    endpoint: Endpoint,
) -> None:
    body = Recorder(object_example(endpoint.fields))
    endpoint.parse(body, SPEC)
    assert body.read <= {field.name for field in endpoint.fields}


def test_parts_of_inputs_are_read_as_declared() -> None:
    ((_, cohere),) = BY_PATH["/v2/embed"]
    body = full(cohere.fields, None) | {
        "texts": None,
        "inputs": [{"content": [{"type": "text", "text": "a"}]}],
    }
    record = Recorder(body)
    cohere.parse(record, SPEC)
    assert list(drift(cohere.fields, record)) == []


@pytest.mark.parametrize("switch", [None, True])
@each_endpoint
def test_no_field_takes_just_anything(
    client: TestClient, endpoint: Endpoint, switch: bool | None
) -> None:
    body = full(endpoint.fields, switch)
    assert client.post(endpoint.path, json=body).status_code == 200
    for field in endpoint.fields:
        reply = client.post(endpoint.path, json={**body, field.name: 0.5})
        assert reply.status_code in (400, 422), field.name


ODD: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    2,
    9,
    999,
    1000,
    0.5,
    "",
    " ",
    "\x1c",
    "\n",
    "\0",
    "a",
    "é\0",
]
ODD += [2**31, 2**31 - 1, -(2**31), -(2**31) - 1, 2**63, 2**64, "x" * 20, "x" * 21, "😀" * 20]
ODD += [
    "query",
    "clustering",
    "search_query",
    "fake",
    "org/fake",
    "float",
    "base64",
    "int8",
    "text",
]
ODD += ["NONE", "END", "Left", "left", [], [None], [True], [""], [" "], ["a"], ["a", ""], ["\0"]]
ODD += [
    ["a", 1],
    ["a", [1]],
    [1],
    [1, 2],
    [-1],
    [2**31 - 1],
    [2**31],
    [[1]],
    [[]],
    [[], [1]],
    [[-1]],
]
ODD += [[[1], ["a"]], [1, "a"], ["a"] * 5, ["a"] * 6, [1] * 20, [1] * 21, [[1] * 21], [[1]] * 6]
ODD += [{}, [{}], ["float", "int8"], ["nope"], {"source_sentence": "a", "sentences": ["b"]}]
ODD += [{"source_sentence": "a", "sentences": ["b"] * 4}, {"truncate": 1}, {"truncate": True}]
ODD += [{"source_sentence": "a", "sentences": ["b"] * 5}, [{"inputs": "a"}], [{"inputs": ""}]]
ODD += [{"source_sentence": "", "sentences": ["b"]}, [{"inputs": "a"}, 1], [{"inputs": "a"}] * 6]
ODD += [[{"content": []}], [{"content": [{"text": "a"}]}], [{"content": [{"text": ""}]}]]
ODD += [[{"content": [{"type": "image", "text": "a"}]}], [{"content": [{"type": "text"}]}]]


def complete(fields: tuple[Field, ...]) -> dict[str, Any]:
    """A body with a right value for nearly every field."""
    values: dict[type, Any] = {
        BoolField: True,
        DimensionsField: 3,
        StringField: "a",
        ModelField: "fake",
        IntField: 16,
    }
    body = object_example(fields)
    for field in fields:
        if field.name in body or isinstance(field, ObjectField):
            continue
        if isinstance(field, InputTypeField):
            body[field.name] = "query"
        elif isinstance(field, EnumField):
            body[field.name] = field.choices[0]
        else:
            body[field.name] = values.get(type(field))
    return body


@each_endpoint
async def test_what_the_schema_allows_is_what_is_taken(endpoint: Endpoint) -> None:
    limits = IngressSettings(max_texts_per_request=5, max_text_chars=20)
    send = in_process(create_app(EmbedService(CALIBRATED, FakeBackend(), limits)))
    context = SchemaContext(CALIBRATED, limits)
    told = openapi(context, DIALECTS)["paths"][endpoint.path]["post"]["requestBody"]
    schema = Draft202012Validator(told["content"]["application/json"]["schema"])
    example = object_example(endpoint.fields)
    without = [{k: v for k, v in example.items() if k != name} for name in example]
    changed = [{**example, field.name: odd} for field in endpoint.fields for odd in ODD]
    # Of two fields of which a request has one, the other one by itself.
    changed += [
        {**body, field.name: odd} for body in without for field in endpoint.fields for odd in ODD
    ]
    whole = complete(endpoint.fields)
    changed += [{**whole, field.name: odd} for field in endpoint.fields for odd in ODD]
    for body in [example, *without, whole, *changed]:
        sent = Request("POST", endpoint.path, "", [TYPE], json.dumps(body).encode())
        reply = await send(sent)
        if b"leave no room" in reply.body:  # for which a schema has no words
            continue
        allowed = schema.is_valid(body)
        assert (reply.status == 200) == allowed, (body, reply.body[:200])


@pytest.mark.parametrize("calibrated", [True, False])
def test_types_of_vectors_that_need_ranges_are_there_with_them(calibrated: bool) -> None:
    spec = CALIBRATED if calibrated else SPEC
    client = TestClient(create_app(EmbedService(spec, FakeBackend(), IngressSettings())))
    paths = client.get("/openapi.json").json()["paths"]
    told = paths["/v2/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (some, _) = told["properties"]["embedding_types"]["anyOf"]
    assert ("int8" in some["items"]["enum"]) == calibrated
    body = {"texts": ["a"], "input_type": "clustering", "embedding_types": some["items"]["enum"]}
    assert client.post("/v2/embed", json=body).status_code == 200


def test_the_page_shows_every_path_and_every_field(
    client: TestClient, document: dict[str, Any]
) -> None:
    reply = client.get("/docs")
    assert reply.headers["content-type"].startswith("text/html")
    for path, _, _ in operations(document):
        assert f"<code>{path}</code>" in reply.text, path
    for _, endpoint in ENDPOINTS:
        for field in endpoint.fields:
            assert f"<code>{field.name}</code>" in reply.text, field.name
            parts = [html.escape(part) for part in field.description.split("`")]
            assert all(part in reply.text for part in parts), field.name


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    text = client.get("/docs").text
    assert not re.search(r"<(script|img|link|iframe|object|embed|base)\b|@import|url\(", text)
    linked = re.findall(r"""(?:href|src|action)=["']?([^"'\s>]+)""", text)
    assert linked
    assert all(link.startswith("#") or link == "openapi.json" for link in linked)
    assert set(re.findall(r"//[\w.:-]+", text)) == {"//testserver"}


def test_a_text_s_kind_is_short(client: TestClient) -> None:
    text = client.get("/docs").text
    row = re.search(r"<tr><td><code>input</code>.*?</tr>", text, re.DOTALL)
    assert row
    assert "<code>string | integer[] | (string | integer[])[]</code>" in row[0]
    assert "u0000" not in text


def test_the_page_is_escaped(document: dict[str, Any]) -> None:
    evil = "<script>alert('x')</script> & \"y\""
    document["info"]["title"] = document["info"]["description"] = evil
    document["tags"] = [{"name": evil}]
    (post,) = document["paths"]["/v1/embeddings"].values()
    post["tags"], post["summary"] = [evil], evil
    content = post["requestBody"]["content"]["application/json"]
    content["examples"] = {evil: {"value": {"input": evil}}}
    content["schema"]["properties"] = {evil: {"enum": [evil], "description": evil}}
    post["responses"] = {"200": {"description": evil}}
    document["paths"] = {f"/{evil}": {"post": post}}
    shown = docs_html(document, f"http://{evil}")
    assert "<script" not in shown
    assert "'x'" not in shown
    assert '"y"' not in shown
    assert html.escape(evil) in shown


def commands(text: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)]


def test_each_command_works_when_it_is_pasted(client: TestClient) -> None:
    seen = set()
    for command in commands(client.get("/docs").text):
        words = shlex.split(command)
        assert words[0] == "curl"
        method = words[2] if words[1] == "-X" else "POST" if "-d" in words else "GET"
        (url,) = (word for word in words if word.startswith("http"))
        headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
        data = words[words.index("-d") + 1] if "-d" in words else None
        reply = client.request(method, url, headers=headers, content=data)
        refusing = {route.endpoint.path for route in UNSUPPORTED}
        assert reply.is_success or url.removeprefix("http://testserver") in refusing, command
        seen.add((method, url))
    assert len(seen) == len(list(operations(client.get("/openapi.json").json())))


def test_a_command_survives_the_shell(document: dict[str, Any]) -> None:
    value = {"input": "it's $HOME & `id`"}
    (post,) = document["paths"]["/v1/embeddings"].values()
    post["requestBody"]["content"]["application/json"]["examples"] = {"x": {"value": value}}
    (command,) = [c for c in commands(docs_html(document, "http://h")) if "$HOME" in c]
    shown = subprocess.run(
        ["sh", "-c", command.replace("curl", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout.splitlines()[-1]) == value


def test_where_keys_are_needed_commands_have_one(document: dict[str, Any]) -> None:
    assert not any("Authorization" in command for command in commands(docs_html(document, "http://h")))
    document["security"] = [one for one in document["security"] if one]
    with_key = {
        c.split()[-1 if "-d" not in c else 1]: c for c in commands(docs_html(document, "http://h"))
    }
    assert 'Bearer $EMBEDSERVE_API_KEY"' in with_key["http://h/v1/embeddings"]
    assert "Authorization" not in with_key["http://h/health"]


def test_with_keys_each_route_tells_how_it_refuses_those_without() -> None:
    context = SchemaContext(SPEC, IngressSettings())
    paths = openapi(context, DIALECTS, keys=True)["paths"]
    assert "401" in paths["/v1/models"]["get"]["responses"]
    assert "401" not in paths["/health"]["get"]["responses"]
    assert "content" not in paths["/embed"]["post"]["responses"]["401"]  # as TEI does it
    infinity = paths["/embeddings"]["post"]["responses"]["401"]
    assert {"www-authenticate"} == set(infinity["headers"])
    assert "403" in paths["/v2/embed"]["post"]["responses"]
