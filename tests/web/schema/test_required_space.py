"""A client that requires a space gets vectors that it can compare, or a 409."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.web.dialect import Dialect
from serve_app.web.endpoint import Endpoint
from serve_app.web.schema.fields import object_example
from tests.fakes import SPEC, FakeBackend
from tests.web.schema.test_openapi import check, documented, each_route, url

PATH, BODY = "/v1/embeddings", {"input": "a"}


@each_route
def test_each_dialect_refuses_the_vectors_of_another_space(
    client: TestClient,
    lookup: FakeBackend,
    document: dict[str, Any],
    dialect: Dialect,
    endpoint: Endpoint,
) -> None:
    reply = client.post(
        url(endpoint.path),
        json=object_example(endpoint.fields),
        headers={"x-embedding-space": "beef-fp32", "accept": "application/octet-stream"},
    )
    assert (reply.status_code, lookup.groups) == (409, [])
    assert reply.headers["x-embedding-space"] == SPEC.space_id
    check(reply, document, documented(endpoint.path), "post")
    Draft202012Validator(dialect.error_schema).validate(reply.json())


@pytest.mark.parametrize(
    ("space", "status"),
    [
        (SPEC.space_id, 200),
        (f"{SPEC.space_id}, {SPEC.space_id}", 200),  # a proxy has joined them
        ("f00d-bf16", 200),
        ("f00d-fp16+float16", 200),
        ("f00d-int8", 409),
        ("f00d", 409),
        ("fp32", 409),
        ("-fp32", 409),
        ("", 409),
        ("\xe9", 409),
    ],
)
def test_float_precisions_of_a_family_can_be_compared(
    client: TestClient, space: str, status: int
) -> None:
    headers = {"x-embedding-space": space.encode("latin-1")}
    assert client.post(PATH, json=BODY, headers=headers).status_code == status  # type: ignore[arg-type]


def test_different_spaces_are_refused(client: TestClient) -> None:
    headers = [("x-embedding-space", "f00d-fp32"), ("x-embedding-space", "f00d-bf16")]
    assert client.post(PATH, json=BODY, headers=headers).status_code == 400
