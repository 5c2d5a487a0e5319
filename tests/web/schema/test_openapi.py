"""The OpenAPI document against the behavior of the application."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.errors import InferenceError, Overloaded, Unavailable, UpstreamError
from serve_app.service.catalog import Catalog
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
from serve_app.web.schema.fields import (
    BoolField,
    DimensionsField,
    EnumField,
    Field,
    IntField,
    ModelField,
    ObjectField,
    SchemaContext,
    StringField,
    object_example,
)
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.openapi import openapi
from tests.fakes import SPEC, FakeBackend
from tests.fuzz import in_process
from tests.malformed_requests import Request
from tests.web.schema.conftest import CALIBRATED

DIALECTS = load_dialects()
BY_PATH = endpoints_by_path(DIALECTS)
VIEWS = all_views(DIALECTS)
ENDPOINTS = [route for candidates in BY_PATH.values() for route in candidates]
TYPE = ("content-type", b"application/json")


def route_id(route: DialectEndpoint | DialectView) -> str:
    return f"{route[1].path} {route.dialect.name}"


each_route = pytest.mark.parametrize(
    ("dialect", "endpoint"), ENDPOINTS, ids=[route_id(route) for route in ENDPOINTS]
)
each_endpoint = pytest.mark.parametrize(
    "endpoint",
    [endpoint for _, endpoint in ENDPOINTS],
    ids=[route_id(route) for route in ENDPOINTS],
)
each_view = pytest.mark.parametrize(
    "view", [view for _, view in VIEWS], ids=[route_id(route) for route in VIEWS]
)


def url(path: str, model: str = SPEC.name) -> str:
    """Returns a route's path with a model's name for its parameter."""
    return re.sub("{.*}", model, path)


def query(view: ViewRoute) -> dict[str, str]:
    """Returns the query with which a view's reply ends."""
    return {"once": "true"} if view.has_stream else {}


def documented(path: str) -> str:
    """Returns a route's path as the document has it."""
    return re.sub(r":path(?=})", "", path)


def body_fields(endpoint: Endpoint) -> tuple[Field, ...]:
    """Returns the fields of the body: without those that are parameters of the path."""
    return tuple(field for field in endpoint.fields if f"{{{field.name}:" not in endpoint.path)


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
    """Asserts that a response is documented: status, headers, media type and schema."""
    documented = document["paths"][path][method]["responses"].get(str(reply.status_code))
    assert documented is not None, f"{reply.status_code} is not documented"
    media_type = reply.headers.get("content-type", "").partition(";")[0]
    assert set(documented.get("content", {})) >= {media_type} - {""}
    for name, header in documented.get("headers", {}).items():
        assert name in reply.headers or not header["required"], name
    if media_type == "application/json":
        schema = documented["content"][media_type]["schema"]
        with_components = {**schema, "components": document["components"]}
        Draft202012Validator(with_components).validate(reply.json())


def test_every_route_is_documented_and_nothing_else(document: dict[str, Any]) -> None:
    dialects = load_dialects()
    served = {
        *((path, "post") for path in endpoints_by_path(dialects)),
        *((route.view.path, route.view.method.lower()) for route in all_views(dialects)),
        *((path, "get") for path in ("/openapi.json", "/docs")),
    }
    documented = {(path, method) for path, method, _ in operations(document)}
    assert documented == {(re.sub(r":\w+}", "}", path), method) for path, method in served}
    app = create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False) as client:
        for path, method in documented:
            request = client.request(method, re.sub("{.*?}", "x", path), params={"once": "true"})
            assert request.status_code != 405, path


def test_the_document_is_well_formed(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    tags = {tag["name"] for tag in document["tags"]}
    for _, _, operation in operations(document):
        assert set(operation["tags"]) <= tags
        for schema in schemas(operation):
            Draft202012Validator.check_schema(schema)


@each_route
def test_each_example_is_answered_as_documented(
    client: TestClient, document: dict[str, Any], dialect: Dialect, endpoint: Endpoint
) -> None:
    content = document["paths"][documented(endpoint.path)]["post"]["requestBody"]["content"]
    body = content["application/json"]["examples"][dialect.name]["value"]
    assert body == object_example(endpoint.fields)
    Draft202012Validator(content["application/json"]["schema"]).validate(body)
    reply = client.post(url(endpoint.path), json=body)
    assert reply.status_code == 200, reply.text
    check(reply, document, documented(endpoint.path), "post")
    Draft202012Validator(endpoint.reply_schema).validate(reply.json())


@pytest.mark.parametrize(
    ("dialect", "endpoint"),
    [
        route
        for route in ENDPOINTS
        if route.endpoint.task not in (None, "embed_images", *SPEC.tasks)
    ],
    ids=lambda value: value.name if isinstance(value, Dialect) else value.path,
)
def test_a_model_without_the_task_fails_as_documented(dialect: Dialect, endpoint: Endpoint) -> None:
    client = TestClient(create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())])))
    reply = client.post(url(endpoint.path), json=object_example(endpoint.fields))
    assert 400 <= reply.status_code < 500
    check(reply, client.get("/openapi.json").json(), documented(endpoint.path), "post")
    Draft202012Validator(dialect.error_schema).validate(reply.json())


ERRORS = [
    Overloaded("full", 7),
    InferenceError("broken"),
    UpstreamError("refused"),
    Unavailable("gone"),
    Unavailable("gone", 7),
    ZeroDivisionError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@each_endpoint
def test_errors_of_the_backend_are_documented(
    client: TestClient,
    lookup: FakeBackend,
    document: dict[str, Any],
    endpoint: Endpoint,
    error: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*args: object) -> None:
        raise error

    for name in ("run", "tokenize", "decode"):
        monkeypatch.setattr(lookup, name, fail)
    reply = client.post(url(endpoint.path), json=object_example(endpoint.fields))
    assert reply.status_code >= 424
    check(reply, document, documented(endpoint.path), "post")


@each_view
def test_each_view_is_as_documented(
    client: TestClient, document: dict[str, Any], view: ViewRoute
) -> None:
    path = documented(view.path)
    body = object_example(view.fields) if view.fields else None
    for name in (SPEC.name, "other"):
        reply = client.request(view.method, url(view.path, name), params=query(view), json=body)
        assert reply.status_code in ((200, 404) if "{" in path else (200,)), reply.text
        check(reply, document, path, view.method.lower())
    if view.media_type == "application/json":
        reply = client.request(view.method, url(view.path), params=query(view), json=body)
        Draft202012Validator(view.reply_schema).validate(reply.json())
        assert set(reply.json()) <= set(view.reply_schema["properties"])


@each_view
def test_each_view_of_an_unhealthy_service_is_as_documented(
    client: TestClient, lookup: FakeBackend, document: dict[str, Any], view: ViewRoute
) -> None:
    lookup.error = Unavailable("gone")
    lookup.cache = Unavailable("gone")
    path = documented(view.path)
    body = object_example(view.fields) if view.fields else None
    reply = client.request(view.method, url(view.path), params=query(view), json=body)
    assert reply.status_code in (200, 503)
    check(reply, document, path, view.method.lower())


@each_endpoint
def test_raw_vectors_are_documented_where_they_are_served(
    client: TestClient, document: dict[str, Any], endpoint: Endpoint
) -> None:
    body, accept = object_example(endpoint.fields), {"accept": "application/octet-stream"}
    reply = client.post(url(endpoint.path), json=body, headers=accept)
    check(reply, document, documented(endpoint.path), "post")
    content = document["paths"][documented(endpoint.path)]["post"]["responses"]["200"]["content"]
    raw = reply.headers["content-type"] == "application/octet-stream"
    assert raw == ("application/octet-stream" in content)


@pytest.mark.parametrize("path", ["/", "/embed", "/health", "/docs", "/v1/models"])
def test_the_allow_header_lists_the_documented_methods(
    client: TestClient, document: dict[str, Any], path: str
) -> None:
    reply = client.delete(path)
    assert reply.status_code == 405
    allowed = {method.lower() for method in reply.headers["allow"].split(", ")}
    assert allowed - {"head"} == set(document["paths"][path])


class Recorder(dict[str, Any]):
    """A dict that records which of its keys are read; nested dicts do so too."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__({name: recorded(value) for name, value in fields.items()})
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


def all_fields(fields: tuple[Field, ...], flag: bool | None) -> dict[str, Any]:
    """Returns a body with every field: `flag` for booleans, the example if required, else null."""
    body: dict[str, Any] = {}
    for field in fields:
        if isinstance(field, ObjectField) and (field.required or not field.many):
            inner = all_fields(field.fields, flag)
            body[field.name] = [inner] if field.many else inner
        elif field.required or field.exclusive_with:
            body[field.name] = field.example()
        else:
            body[field.name] = flag if type(field) is BoolField else None
    return body


def drift(fields: tuple[Field, ...], body: Recorder) -> Iterator[str]:
    """Yields the differences between the declared fields and those that were read."""
    declared = {field.name for field in fields}
    yield from (f"{name} is read, not declared" for name in body.read - declared)
    yield from (f"{name} is declared, not read" for name in declared - body.read)
    for field in fields:
        if isinstance(field, ObjectField):
            value = dict(body).get(field.name)
            for inner in value if isinstance(value, list) else [value]:
                if inner is not None:
                    yield from drift(field.fields, inner)


@pytest.mark.parametrize("flag", [None, True, False])
@each_endpoint
def test_exactly_the_declared_fields_are_read(endpoint: Endpoint, flag: bool | None) -> None:
    body = Recorder(all_fields(endpoint.fields, flag))
    endpoint.model_name(body)
    endpoint.parse(body, CALIBRATED)
    assert list(drift(endpoint.fields, body)) == []


@each_endpoint
def test_only_declared_fields_are_read_from_the_example(
    endpoint: Endpoint,
) -> None:
    body = Recorder(object_example(endpoint.fields))
    endpoint.model_name(body)
    endpoint.parse(body, CALIBRATED)
    assert body.read <= {field.name for field in endpoint.fields}


def test_fields_of_nested_parts_are_read_as_declared() -> None:
    ((_, cohere),) = BY_PATH["/v2/embed"]
    body = all_fields(cohere.fields, None) | {
        "texts": None,
        "inputs": [{"content": [{"type": "text", "text": "a"}]}],
    }
    recorder = Recorder(body)
    cohere.model_name(recorder)
    cohere.parse(recorder, CALIBRATED)
    assert list(drift(cohere.fields, recorder)) == []


@pytest.mark.parametrize("flag", [None, True])
@each_endpoint
def test_every_field_rejects_a_wrong_type(
    client: TestClient, endpoint: Endpoint, flag: bool | None
) -> None:
    body = all_fields(endpoint.fields, flag)
    assert client.post(url(endpoint.path), json=body).status_code == 200
    for field in body_fields(endpoint):
        reply = client.post(url(endpoint.path), json={**body, field.name: 0.5})
        assert reply.status_code in (400, 422), field.name


#: Values at the edges of what fields accept, for every field.
EDGES: list[Any] = [None, True, 0, 1, -1, 2, 9, 999, 1000, 0.5, [], {}]
EDGES += ["", " ", "\x1c", "\n", "\0", "a", "é\0", "x" * 20, "x" * 21, "😀" * 20]
EDGES += [2**31, 2**31 - 1, -(2**31), -(2**31) - 1, 2**63, 2**64]
EDGES += ["query", "clustering", "search_query", "fake", "org/fake", "float", "base64", "int8"]
EDGES += ["text", "NONE", "END", "Left", "left"]
EDGES += [[None], [True], [""], [" "], ["a"], ["a", ""], ["\0"], ["a", 1], ["a", [1]]]
EDGES += [[1], [1, 2], [-1], [2**31 - 1], [2**31], [[1]], [[]], [[], [1]], [[-1]], [1, "a"]]
EDGES += [[[1], ["a"]], ["a"] * 5, ["a"] * 6, [1] * 20, [1] * 21, [[1] * 21], [[1]] * 6]
EDGES += [[{}], ["float", "int8"], ["nope"], {"truncate": 1}, {"truncate": True}]
EDGES += [{"source_sentence": "a", "sentences": ["b"] * n} for n in (1, 4, 5)]
EDGES += [{"source_sentence": "", "sentences": ["b"]}]
EDGES += [[{"inputs": "a"}], [{"inputs": ""}], [{"inputs": "a"}, 1], [{"inputs": "a"}] * 6]
EDGES += [[{"content": []}], [{"content": [{"text": "a"}]}], [{"content": [{"text": ""}]}]]
EDGES += [[{"content": [{"type": "image", "text": "a"}]}], [{"content": [{"type": "text"}]}]]


def valid_values(fields: tuple[Field, ...]) -> dict[str, Any]:
    """Returns a body with a valid value for nearly every field."""
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
async def test_a_body_is_accepted_if_and_only_if_the_schema_allows_it(endpoint: Endpoint) -> None:
    limits = IngressSettings(max_texts_per_request=5, max_text_chars=20)
    send = in_process(create_app(Catalog([EmbedService(CALIBRATED, FakeBackend(), limits)])))
    context = SchemaContext((CALIBRATED,), limits)
    operation = openapi(context, DIALECTS)["paths"][documented(endpoint.path)]["post"]
    content = operation["requestBody"]["content"]
    schema = Draft202012Validator(content["application/json"]["schema"])
    fields = body_fields(endpoint)
    example = object_example(fields)
    incomplete = [{k: v for k, v in example.items() if k != name} for name in example]
    changed = [{**example, field.name: value} for field in fields for value in EDGES]
    # The one of two exclusive fields that the example lacks.
    changed += [
        {**body, field.name: value} for body in incomplete for field in fields for value in EDGES
    ]
    complete = valid_values(fields)
    changed += [{**complete, field.name: value} for field in fields for value in EDGES]
    for body in [example, *incomplete, complete, *changed]:
        sent = Request("POST", url(endpoint.path), "", [TYPE], json.dumps(body).encode())
        reply = await send(sent)
        # What no schema can express.
        if b"leave no room" in reply.body or b"one text, or as many as" in reply.body:
            continue
        allowed = schema.is_valid(body)
        assert (reply.status == 200) == allowed, (body, reply.body[:200])


@pytest.mark.parametrize("calibrated", [True, False])
def test_output_types_that_need_calibrated_ranges_are_documented_with_them(
    calibrated: bool,
) -> None:
    spec = CALIBRATED if calibrated else SPEC
    client = TestClient(create_app(Catalog([EmbedService(spec, FakeBackend(), IngressSettings())])))
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/v2/embed"]["post"]["requestBody"]["content"]
    properties = content["application/json"]["schema"]["properties"]
    (output_types, _) = properties["embedding_types"]["anyOf"]
    assert ("int8" in output_types["items"]["enum"]) == calibrated
    body = {
        "texts": ["a"],
        "input_type": "clustering",
        "embedding_types": output_types["items"]["enum"],
    }
    assert client.post("/v2/embed", json=body).status_code == 200


def test_with_keys_401_and_403_are_documented() -> None:
    context = SchemaContext((SPEC,), IngressSettings())
    paths = openapi(context, DIALECTS, keys=True)["paths"]
    assert "401" in paths["/v1/models"]["get"]["responses"]
    assert "401" not in paths["/health"]["get"]["responses"]
    assert "content" not in paths["/embed"]["post"]["responses"]["401"]  # as TEI does it
    infinity = paths["/embeddings"]["post"]["responses"]["401"]
    assert {"www-authenticate"} == set(infinity["headers"])
    assert "403" in paths["/v2/embed"]["post"]["responses"]
