"""Paths that are almost those of a route: served after normalization, or a 404 with a hint."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

ORIGIN = "http://testserver"


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(SPEC, FakeBackend(), IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings/", "//v1/embeddings", "/v1//embeddings", "///v1//embeddings//"],
)
def test_repeated_and_trailing_slashes_are_ignored(client: TestClient, path: str) -> None:
    reply = client.post(ORIGIN + path, json={"input": "a"})
    assert reply.status_code == 200
    plain = client.post("/v1/embeddings", json={"input": "a"})
    assert reply.json()["data"] == plain.json()["data"]


@pytest.mark.parametrize("path", ["/health/", "//health", "/embed/models/", "//", "/docs/"])
def test_slashes_are_ignored_by_routes_without_a_body(client: TestClient, path: str) -> None:
    assert client.get(ORIGIN + path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1/models//"])
def test_models_are_listed_with_slashes_too(client: TestClient, path: str) -> None:
    assert client.get(ORIGIN + path).json() == client.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/v1/models/{}/", "//v1/models/{}", "/v1/models//{}"])
def test_a_model_is_found_with_slashes_too(client: TestClient, path: str) -> None:
    reply = client.get(ORIGIN + path.format(SPEC.name))
    assert reply.json() == client.get(f"/v1/models/{SPEC.name}").json()
    assert reply.json()["id"] == SPEC.name


def test_an_error_has_the_format_of_the_normalized_path(client: TestClient) -> None:
    reply = client.post(ORIGIN + "/embed_all/", json={"inputs": []})
    assert reply.status_code == 400
    assert reply.json()["error_type"] == "Empty"
    wrong_method = client.get(ORIGIN + "//v1/embeddings/")
    assert (wrong_method.status_code, wrong_method.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("/v1/v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/models/", "/v1/models"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/v1/embeddings/embeddings", "/v1/embeddings"),
        ("/V1/Embeddings", "/v1/embeddings"),
        ("/openapi", "/openapi.json"),
        ("/doc", "/docs"),
    ],
)
def test_a_404_names_the_nearest_route(client: TestClient, path: str, nearest: str) -> None:
    reply = client.post(ORIGIN + path, json={"input": "a"})
    assert reply.status_code == 404
    assert reply.json()["error"]["message"].endswith(f" The nearest route is {nearest}.")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/completions", "/favicon.ico", "/" + "a" * 9000])
def test_a_404_that_resembles_no_route_names_none(client: TestClient, path: str) -> None:
    message = client.get(path).json()["error"]["message"]
    assert message == f"Nothing is served at {path}."
