"""The OpenAPI document of a service with a model of each kind."""

from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialect import Dialect
from serve_app.web.endpoint import Endpoint, ViewRoute
from serve_app.web.schema.fields import object_example
from tests.fakes import SPEC, FakeBackend
from tests.web.dialects.test_images import CLIP
from tests.web.dialects.test_scores import SPECS
from tests.web.schema.test_openapi import check, documented, each_route, each_view, query, url

MODELS = (*SPECS, replace(CLIP, name="org/clip", aliases=(), space_id="dead-fp32"))


@pytest.fixture(scope="module")
def client() -> TestClient:
    services = [
        EmbedService(spec, FakeBackend(len(spec.labels) or 1), IngressSettings()) for spec in MODELS
    ]
    return TestClient(create_app(Catalog(services)))


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, object]:
    document: dict[str, object] = client.get("/openapi.json").json()
    return document


@each_route
def test_each_example_is_answered_as_documented(
    client: TestClient, document: dict[str, object], dialect: Dialect, endpoint: Endpoint
) -> None:
    reply = client.post(url(endpoint.path), json=object_example(endpoint.fields))
    assert reply.status_code == 200, reply.text
    check(reply, document, documented(endpoint.path), "post")
    Draft202012Validator(endpoint.reply_schema).validate(reply.json())


@each_route
def test_errors_before_a_model_is_selected_are_documented(
    client: TestClient, document: dict[str, object], dialect: Dialect, endpoint: Endpoint
) -> None:
    reply = client.post(url(endpoint.path), content=b"{", headers={"content-type": "text/csv"})
    assert reply.status_code == 415
    check(reply, document, documented(endpoint.path), "post")


@each_view
def test_each_view_is_as_documented(
    client: TestClient, document: dict[str, object], view: ViewRoute
) -> None:
    body = object_example(view.fields) if view.fields else None
    for spec in MODELS if "{" in view.path else (SPEC,):
        path = url(view.path, spec.name)
        reply = client.request(view.method, path, params=query(view), json=body)
        check(reply, document, documented(view.path), view.method.lower())


def test_the_document_names_every_model(document: dict[str, object]) -> None:
    names = {name for spec in MODELS for name in (spec.name, *spec.aliases)}
    assert all(f'"{name}"' in str(document).replace("'", '"') for name in names)


@pytest.mark.parametrize(("default", "dim"), [("org/fake", SPEC.dim), ("org/wide", 99)])
def test_limits_are_those_of_the_default_model_of_the_task(default: str, dim: int) -> None:
    wide = replace(SPEC, name="org/wide", aliases=(), dim=99, space_id="dead-fp32")
    services = [EmbedService(spec, FakeBackend(), IngressSettings()) for spec in (SPEC, wide)]
    client = TestClient(create_app(Catalog(services, defaults={"embed": default})))
    operation = client.get("/openapi.json").json()["paths"]["/v2/embed"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert f"'maximum': {dim}" in str(schema["properties"]["output_dimension"])
