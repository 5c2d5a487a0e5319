"""A model whose fallback is of another space: every reply says which model it is from."""

import hashlib
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InferenceError,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from serve_app.metrics import FALLBACK_TEXTS, REQUESTS
from serve_app.service.catalog import Catalog, Fallback
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from serve_app.web.dialects.sidecar import InfoReply
from serve_app.web.dialects.status import HealthReply
from serve_app.web.schema.typed_dict import schema_of
from tests.fakes import SPEC, FakeBackend, fake_vector

FIRST = replace(SPEC, prompts={**SPEC.prompts, "legal": "law: "})
OTHER = replace(
    SPEC,
    name="org/other",
    aliases=(),
    space_id="beef-fp32",
    prompts={},
    dimensions=(4,),
    nano_usd_per_1k_tokens=1_000_000,
)
#: May use both models, or only the first one; few requests.
SECRETS = {name: f"es-{name}-0123456789" for name in ("both", "first", "few")}
KEYS: list[dict[str, Any]] = [
    {"name": "both"},
    {"name": "first", "models": [SPEC.name]},
    {"name": "few", "requests_per_minute": 1},
]


class Models:
    """The application, with the backends of both models."""

    def __init__(self, settings: IngressSettings | None = None, keys: bool = False) -> None:
        self.first, self.other = FakeBackend(), FakeBackend()
        self.failures: dict[str, str] = {}
        pairs = ((FIRST, self.first), (OTHER, self.other))
        services = [EmbedService(*pair, settings or IngressSettings()) for pair in pairs]
        self.catalog = Catalog(
            services,
            fallbacks={SPEC.name: Fallback([OTHER.name])},
            engine_failures=self.engine_failures,
        )
        entrance = Entrance(MemoryQuotaStore(), self.catalog.meter)
        if keys:
            hashed = [
                ApiKey.model_validate(
                    key | {"sha256": hashlib.sha256(SECRETS[key["name"]].encode()).hexdigest()}
                )
                for key in KEYS
            ]
            entrance.apply(AccessSettings(keys=tuple(hashed)))
        self.client = TestClient(create_app(self.catalog, entrance))

    async def engine_failures(self) -> dict[str, str]:
        return self.failures

    def embed(self, key: str | None = None, **fields: Any) -> httpx2.Response:
        headers = {} if key is None else {"authorization": f"Bearer {SECRETS[key]}"}
        return self.client.post("/v1/embeddings", json={"input": "a"} | fields, headers=headers)


@pytest.fixture
def models() -> Models:
    models = Models()
    models.first.error = Unavailable("No replica.")
    return models


def test_a_model_that_answers_has_no_fallback() -> None:
    models = Models()
    reply = models.embed()
    assert (reply.json()["model"], models.other.groups) == (SPEC.name, [])
    assert "x-embedding-model" not in reply.headers


def test_a_client_that_requires_the_space_of_its_model_gets_no_other(models: Models) -> None:
    def embed(space: str) -> httpx2.Response:
        headers = {"x-embedding-space": space}
        return models.client.post("/v1/embeddings", json={"input": "a"}, headers=headers)

    assert (embed(SPEC.space_id).status_code, models.other.groups) == (503, [])
    assert embed(OTHER.space_id).status_code == 409
    models.first.error = None
    assert embed(SPEC.space_id).status_code == 200


@pytest.mark.parametrize("error", [Unavailable("no"), InferenceError("no"), Overloaded("full")])
def test_each_reply_says_which_model_it_is_from(models: Models, error: EmbedServeError) -> None:
    models.first.error = error
    reply = models.embed(model="fake")
    assert (reply.status_code, reply.json()["model"]) == (200, OTHER.name)
    np.testing.assert_allclose(reply.json()["data"][0]["embedding"], fake_vector("a"))
    assert reply.headers["x-embedding-space"] == OTHER.space_id
    assert reply.headers["x-embedding-model"] == OTHER.name
    assert reply.headers["x-cost-usd"] == "0.000001000"
    service = models.catalog.resolve(OTHER.name)
    assert service.meter.process.value(REQUESTS, "200", OTHER.name) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/embed", {"texts": ["a"]}),
        ("/api/embed", {"model": "fake", "input": "a"}),
        ("/api/embeddings", {"model": "fake", "prompt": "a"}),
        ("/v2/embed", {"model": "fake", "texts": ["a"], "input_type": "search_query"}),
    ],
)
def test_in_every_dialect(models: Models, path: str, body: dict[str, Any]) -> None:
    reply = models.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-embedding-model"] == OTHER.name
    assert '"fake"' not in reply.text


def test_texts_are_counted_by_model_and_by_the_model_that_answers(models: Models) -> None:
    models.embed(input=["a", "b"])
    meter = models.catalog.services[0].meter
    assert meter.process.value(FALLBACK_TEXTS, OTHER.name, SPEC.name) == 2


@pytest.mark.parametrize(
    "fields", [{"dimensions": 6}, {"input_type": "legal"}, {"input": [[1, 2]]}], ids=str
)
def test_a_job_that_the_other_model_cannot_run_gets_the_first_error(
    models: Models, fields: dict[str, Any]
) -> None:
    """Dimensions, an input type, and token ids of the first model's vocabulary."""
    reply = models.embed(**fields)
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "No replica.")
    assert models.other.groups == []
    assert reply.headers["x-embedding-space"] == SPEC.space_id


def test_token_ids_of_openai_are_texts_and_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = SimpleNamespace(decode_bytes=bytes)
    tiktoken = SimpleNamespace(get_encoding=lambda name: encoding)
    monkeypatch.setitem(sys.modules, "tiktoken", tiktoken)
    models = Models(IngressSettings(token_ids="cl100k_base"))
    models.first.error = Unavailable("no")
    assert models.embed(input=[[97]]).json()["model"] == OTHER.name


@pytest.mark.parametrize("error", [InvalidRequest("no"), DeadlineExceeded("no")])
def test_no_other_error_falls_back(models: Models, error: EmbedServeError) -> None:
    models.first.error = error
    assert models.embed().status_code == error.status
    assert models.other.groups == []


def test_tokens_are_those_of_the_model_or_an_error(models: Models) -> None:
    reply = models.client.post("/tokenize", json={"inputs": "a"})
    assert (reply.status_code, "x-embedding-model" in reply.headers) == (503, False)


def test_the_error_of_the_fallback_is_not_seen(models: Models) -> None:
    models.other.error = InferenceError("another")
    reply = models.embed()
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "No replica.")


def test_a_model_that_is_named_itself_answers_itself(models: Models) -> None:
    models.other.error = InferenceError("no")
    assert models.embed(model=OTHER.name).status_code == 500


def test_limits_of_keys_apply_to_the_model_that_answers() -> None:
    models = Models(keys=True)
    models.first.error = Unavailable("No replica.")
    assert models.embed("both").json()["model"] == OTHER.name
    assert models.embed("first").status_code == 503
    models.first.error = None
    assert models.embed("few").json()["model"] == SPEC.name
    assert models.embed("few").status_code == 429  # the key's own limit: no model may answer
    assert len(models.other.groups) == 1


def test_health_and_info_show_the_chain() -> None:
    models = Models()
    health = models.client.get("/health").json()
    ok = {"status": "ok", "reason": None, "models": [OTHER.name]}
    assert (health["status"], health["fallbacks"]) == ("ok", {SPEC.name: ok})
    models.failures[SPEC.name] = "out of memory"
    health = models.client.get("/health").json()
    assert (health["status"], health["reason"]) == ("degraded", "out of memory")
    assert health["fallbacks"][SPEC.name]["status"] == "failing"
    assert "fallbacks" not in models.client.get("/health", params={"model": OTHER.name}).json()
    Draft202012Validator(schema_of(HealthReply)).validate(health)
    info = models.client.get("/info").json()
    assert info["fallback"] == [OTHER.name]
    Draft202012Validator(schema_of(InfoReply)).validate(info)
    assert "fallback" not in models.client.get("/info", params={"model": OTHER.name}).json()
