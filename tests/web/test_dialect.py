"""How dialects are discovered, and which one a request on a shared path belongs to."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web import dialects
from serve_app.web.app import create_app
from serve_app.web.dialect import Dialect, all_views, endpoints_by_path
from serve_app.web.dialects import cohere, load_dialects, openai, sidecar, tei
from tests.fakes import SPEC, FakeBackend

#: A dialect of a third party, on a path of TEI's and the sidecar's.
THIRD_PARTY = dedent(
    """
    from typing import TypedDict

    import orjson

    from serve_app.jobs import EmbedJob
    from serve_app.web.dialect import Dialect, ErrorResponse
    from serve_app.web.endpoint import Endpoint, ParsedRequest
    from serve_app.web.schema.fields import TextsField
    from serve_app.web.schema.typed_dict import schema_of

    PHRASES = TextsField("phrases", "The phrases to embed.", required=True)


    class CountReply(TypedDict):
        count: int


    def parse(body, spec):
        return ParsedRequest(EmbedJob(PHRASES(body)), render)


    def render(result):
        reply: CountReply = {"count": len(result.vectors)}
        return orjson.dumps(reply)


    def render_error(error):
        return ErrorResponse(418, orjson.dumps({"count": 0}))


    DIALECT = Dialect(
        name="third party",
        render_error=render_error,
        error_schema=schema_of(CountReply),
        endpoints=(
            Endpoint(
                path="/embed",
                summary="Count phrases.",
                deciding_key="phrases",
                fields=(PHRASES,),
                parse=parse,
                reply_schema=schema_of(CountReply),
            ),
        ),
    )
    """
)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Adds one file to the package of the dialects."""
    (tmp_path / "third_party.py").write_text(THIRD_PARTY, encoding="utf-8")
    monkeypatch.setattr(dialects, "__path__", [*dialects.__path__, str(tmp_path)])
    yield
    del sys.modules["serve_app.web.dialects.third_party"]
    del dialects.third_party  # type: ignore[attr-defined]


def client_of(*served: Dialect) -> TestClient:
    service = EmbedService(SPEC, FakeBackend(), IngressSettings())
    return TestClient(create_app(Catalog([service]), dialects=served or None))


def test_every_module_with_a_dialect_is_found_in_a_stable_order() -> None:
    names = [dialect.name for dialect in load_dialects()]
    assert names[:3] == ["OpenAI", "TEI", "sidecar"]
    assert len(set(names)) == len(names) == 21
    assert load_dialects() == load_dialects()


def test_no_route_is_defined_twice() -> None:
    loaded = load_dialects()
    routes = [(view.method, view.path) for _, view in all_views(loaded)]
    routes += [("POST", path) for path in endpoints_by_path(loaded)]
    assert len(set(routes)) == len(routes)


@pytest.mark.usefixtures("third_party")
def test_one_file_adds_a_dialect() -> None:
    client = client_of()
    assert client.post("/embed", json={"phrases": ["a", "b"]}).json() == {"count": 2}
    assert client.post("/embed", json={"phrases": 1}).status_code == 418
    assert client.post("/embed", json={"inputs": 1}).json()["error_type"] == "Validation"
    document = client.get("/openapi.json").json()
    assert document["paths"]["/embed"]["post"]["tags"] == ["TEI", "sidecar", "third party"]
    assert document["components"]["schemas"]["error_third_party"]["required"] == ["count"]


@pytest.mark.usefixtures("third_party")
def test_an_added_dialect_does_not_render_the_errors_of_an_existing_path() -> None:
    client = client_of()
    assert client.get("/embed").json()["error_type"] == "Validation"
    assert client.post("/nowhere", json={}).json()["error"]["code"] == "unknown_url"


def test_the_deciding_key_selects_the_dialect_of_a_shared_path() -> None:
    client = client_of(tei.DIALECT, sidecar.DIALECT)
    assert isinstance(client.post("/embed", json={"inputs": "a"}).json(), list)
    assert list(client.post("/embed", json={"texts": "a"}).json()) == ["vectors"]
    assert list(client.post("/embed", json={"texts": 1}).json()) == ["error"]


@pytest.mark.parametrize("first", [tei.DIALECT, sidecar.DIALECT], ids=lambda one: one.name)
def test_the_first_dialect_of_a_path_renders_errors_without_a_deciding_key(first: Dialect) -> None:
    other = sidecar.DIALECT if first is tei.DIALECT else tei.DIALECT
    body = client_of(first, other).post("/embed", json={}).json()
    assert ("error_type" in body) == (first is tei.DIALECT)


def test_the_first_dialect_renders_the_errors_of_unknown_paths() -> None:
    assert list(client_of(cohere.DIALECT).get("/nowhere").json()) == ["message"]
    assert "detail" in client_of(openai.DIALECT).get("/nowhere").json()


def test_only_the_given_dialects_are_served() -> None:
    renamed = replace(cohere.DIALECT, name="renamed")
    document = client_of(renamed).get("/openapi.json").json()
    assert document["tags"] == [{"name": "renamed"}, {"name": "status"}]
    assert "/embed" not in document["paths"]
