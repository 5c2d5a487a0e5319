"""Bodies of every route with valid, edge and arbitrary values: no server errors."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialect import DialectEndpoint, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import object_example
from tests.fakes import SPEC, FakeBackend

BY_PATH = endpoints_by_path(load_dialects())
ROUTES = [route for candidates in BY_PATH.values() for route in candidates]


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


FIELDS = sorted({field.name for route in ROUTES for field in route.endpoint.fields})
FIELDS += ["content", "images", "sentences", "source_sentence", "text", "type"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)

EDGES: list[Any] = ["", " ", "\0", 0, -1, 1e9, True, None, {}]
EDGES += [[], [""], [0], [-1], [None], [[]], [{}], [{"content": [{}]}], [{"inputs": []}]]


def bodies(route: DialectEndpoint) -> st.SearchStrategy[tuple[str, object]]:
    """Generates a route's path, and a body of its fields with valid or arbitrary values."""
    endpoint = route.endpoint
    examples = {field.name: st.just(field.example()) for field in endpoint.fields if field.required}
    required = {name: example | example | json_values for name, example in examples.items()}
    optional = {field.name: json_values for field in endpoint.fields if not field.required}
    body = st.fixed_dictionaries(required, optional=optional)
    return st.tuples(st.just(endpoint.path), body)


def assert_success_or_client_error(client: TestClient, path: str, body: object) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post(path, content=json.dumps(body), headers=headers)
    assert reply.status_code in (200, 400, 404, 422, 424), (body, reply.text)


@settings(
    max_examples=3 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.one_of(*map(bodies, ROUTES)) | st.tuples(st.sampled_from(sorted(BY_PATH)), json_values))
def test_arbitrary_json_never_causes_a_server_error(
    client: TestClient, path_and_body: tuple[str, object]
) -> None:
    assert_success_or_client_error(client, *path_and_body)


@pytest.mark.parametrize(
    "route", ROUTES, ids=lambda route: f"{route.dialect.name} {route.endpoint.path}"
)
def test_edge_values_never_cause_a_server_error(client: TestClient, route: DialectEndpoint) -> None:
    endpoint = route.endpoint
    example = object_example(endpoint.fields)
    for field in endpoint.fields:
        incomplete = {name: value for name, value in example.items() if name != field.name}
        assert_success_or_client_error(client, endpoint.path, incomplete)
        for edge in EDGES:
            assert_success_or_client_error(client, endpoint.path, {**incomplete, field.name: edge})
