"""Aliases over the application: which model answers, in every dialect, and what says so."""

import hashlib
from dataclasses import replace
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.access.entrance import Entrance
from serve_app.access.quota import MemoryQuotaStore
from serve_app.config import AccessSettings, ApiKey, IngressSettings
from serve_app.errors import Unavailable
from serve_app.meter import Meter
from serve_app.metrics import CANARY_REQUESTS
from serve_app.service.alias import Alias, Canary
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend

SECOND = replace(SPEC, name="org/second", aliases=(), space_id="beef-fp32", prompts={})
SECRETS = {name: f"es-{name}-0123456789" for name in ("alice", "bob", "first")}
KEYS: list[dict[str, Any]] = [
    {"name": "alice"},
    {"name": "bob"},
    {"name": "first", "models": [SPEC.name]},
]
SPACES = {SPEC.name: SPEC.space_id, SECOND.name: SECOND.space_id}


class Service:
    """The application with the alias `words` of two models."""

    def __init__(self, share: float | None = None, *names: str, keys: bool = True) -> None:
        self.first, self.second = FakeBackend(), FakeBackend()
        meter = Meter()
        services = [
            EmbedService(spec, backend, IngressSettings(), meter.for_model(spec.name))
            for spec, backend in ((SPEC, self.first), (SECOND, self.second))
        ]
        canary = Canary(services[1], share, frozenset(names))
        alias = Alias("words", services[0], canary, is_default=True)
        self.catalog = Catalog(services, aliases=[alias])
        entrance = Entrance(MemoryQuotaStore(), self.catalog.meter)
        if keys:
            entries = [
                ApiKey.model_validate(
                    key | {"sha256": hashlib.sha256(SECRETS[key["name"]].encode()).hexdigest()}
                )
                for key in KEYS
            ]
            entrance.apply(AccessSettings(keys=tuple(entries)))
        self.client = TestClient(create_app(self.catalog, entrance))

    def post(
        self, path: str, body: dict[str, Any], key: str | None = None, **headers: str
    ) -> httpx2.Response:
        return self.client.post(path, json=body, headers=self._headers(key, headers))

    def embed(self, key: str | None = None, **headers: str) -> httpx2.Response:
        return self.post("/v1/embeddings", {"input": "a", "model": "words"}, key, **headers)

    def info(self, key: str | None = None) -> dict[str, Any]:
        reply = self.client.get("/info?model=words", headers=self._headers(key, {}))
        info: dict[str, Any] = reply.json()
        return info

    def _headers(self, key: str | None, headers: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return named if key is None else {"authorization": f"Bearer {SECRETS[key]}", **named}


@pytest.fixture
def service() -> Service:
    """A service whose canary is for the key `alice`."""
    return Service(None, "alice")


@pytest.mark.parametrize(("key", "model"), [("alice", SECOND.name), ("bob", SPEC.name)])
def test_a_client_sees_one_model_in_replies_headers_and_info(
    service: Service, key: str, model: str
) -> None:
    for _ in range(3):
        reply = service.embed(key)
        assert reply.json()["model"] == model
        assert reply.headers["x-embedding-space"] == SPACES[model]
    assert (service.info(key)["model"], service.info(key)["space"]) == (model, SPACES[model])
    assert service.catalog.meter.value(CANARY_REQUESTS, "words", model) == 3


def test_info_describes_each_alias(service: Service) -> None:
    (alias,) = service.info("bob")["alias_models"]
    assert alias == {
        "alias": "words",
        "model": SPEC.name,
        "space": SPEC.space_id,
        "canary": {"model": SECOND.name, "space": SECOND.space_id, "share": None},
    }
    assert (
        "alice"
        not in service.client.get(
            "/info", headers={"authorization": f"Bearer {SECRETS['bob']}"}
        ).text
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/embed", {"texts": ["a"]}),
        ("/api/embed", {"model": "words", "input": "a"}),
        ("/v2/embed", {"model": "words", "texts": ["a"], "input_type": "search_query"}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_in_every_dialect_and_without_a_model(
    service: Service, path: str, body: dict[str, Any]
) -> None:
    assert service.post(path, body, "alice").headers["x-embedding-space"] == SECOND.space_id
    assert service.post(path, body, "bob").headers["x-embedding-space"] == SPEC.space_id


def test_the_models_own_names_have_no_canary(service: Service) -> None:
    for model in (SPEC.name, SECOND.name):
        reply = service.post("/v1/embeddings", {"input": "a", "model": model}, "alice")
        assert reply.headers["x-embedding-space"] == SPACES[model]


def test_a_required_space_selects_the_model_or_is_a_conflict(service: Service) -> None:
    def embed(key: str, space: str) -> tuple[int, str]:
        reply = service.embed(key, x_embedding_space=space)
        return reply.status_code, reply.headers["x-embedding-space"]

    assert embed("alice", SPEC.space_id) == (200, SPEC.space_id)
    assert embed("bob", SECOND.space_id) == (200, SECOND.space_id)
    assert embed("bob", "cafe-fp32")[0] == 409
    assert embed("first", SECOND.space_id) == (409, SPEC.space_id)
    assert len(service.first.groups) == len(service.second.groups) == 1


def test_a_key_without_the_canarys_model_stays_with_the_first() -> None:
    service = Service(1.0)
    assert service.embed("bob").headers["x-embedding-space"] == SECOND.space_id
    assert service.embed("first").headers["x-embedding-space"] == SPEC.space_id


def test_a_canary_that_fails_is_not_replaced_by_the_first_model(service: Service) -> None:
    service.second.error = Unavailable("No replica.")
    reply = service.embed("alice")
    assert (reply.status_code, reply.headers["x-embedding-space"]) == (503, SECOND.space_id)
    assert service.first.groups == []


def spaces(service: Service, address: str, count: int = 3) -> set[str]:
    return {
        service.embed(x_forwarded_for=address).headers["x-embedding-space"] for _ in range(count)
    }


def test_without_keys_the_address_of_the_client_decides() -> None:
    service = Service(0.5, keys=False)
    found = [spaces(service, f"10.0.0.{i}") for i in range(20)]
    assert all(len(space) == 1 for space in found)
    assert set.union(*found) == {*SPACES.values()}


@pytest.mark.parametrize(
    "value",
    ["10.0.0.{}, 192.168.0.1", "10.0.0.{}:4711", " 10.0.0.{} ,[2001:db8::1]:80"],
)
def test_proxies_and_ports_do_not_change_the_choice(value: str) -> None:
    service = Service(0.5, keys=False)
    for i in range(20):
        assert spaces(service, value.format(i), 1) == spaces(service, f"10.0.0.{i}", 1)


def test_ports_of_ipv6_addresses_do_not_change_the_choice() -> None:
    service = Service(0.5, keys=False)
    found = [spaces(service, f"2001:db8::{i}", 1) for i in range(20)]
    assert found == [spaces(service, f"[2001:db8::{i}]:{i}", 1) for i in range(20)]
    assert len(set.union(*found)) == 2


def test_vectors_are_those_of_the_model_that_answers() -> None:
    service = Service(None, "alice")
    replies = [service.embed(key).json()["data"][0]["embedding"] for key in ("alice", "bob")]
    np.testing.assert_array_equal(*replies)  # both fakes compute alike
    assert (len(service.second.groups), len(service.first.groups)) == (1, 1)


def test_the_alias_is_listed_among_the_models(service: Service) -> None:
    headers = {"authorization": f"Bearer {SECRETS['bob']}"}
    listed = service.client.get("/v1/models", headers=headers).json()["data"]
    assert "words" in {model["id"] for model in listed}
    schema = service.client.get("/openapi.json", headers=headers).text
    assert '"words"' in schema
