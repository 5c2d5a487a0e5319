"""A model whose deployment has scaled to zero: status routes let it sleep, texts don't fail."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import EngineInfo, ReplicaCount
from serve_app.web.app import create_app
from serve_app.web.dialects.sidecar import InfoReply
from serve_app.web.dialects.status import HealthReply
from serve_app.web.schema.typed_dict import schema_of
from tests.fakes import SPEC, FakeBackend

ASLEEP = ReplicaCount(0, may_be_zero=True)
AWAKE = ReplicaCount(1, may_be_zero=True)


class SleepingBackend(FakeBackend):
    """A backend that counts the calls that would start a replica."""

    def __init__(self) -> None:
        super().__init__()
        self.count: ReplicaCount | None = ASLEEP
        self.described = 0

    async def count_replicas(self) -> ReplicaCount | None:
        return self.count

    async def describe(self) -> EngineInfo:
        self.described += 1
        if self.count == ASLEEP:
            await asyncio.sleep(60)
        return await super().describe()

    @property
    def woke_up(self) -> bool:
        return bool(self.groups or self.described)


@pytest.fixture
def backend() -> SleepingBackend:
    return SleepingBackend()


def service(backend: SleepingBackend, name: str = SPEC.name, **settings: Any) -> EmbedService:
    return EmbedService(
        replace(SPEC, name=name, aliases=(), space_id=f"{name}-fp32"),
        backend,
        IngressSettings(**settings),
        count_replicas=backend.count_replicas,
    )


def client(*services: EmbedService) -> TestClient:
    return TestClient(create_app(Catalog(services)))


@pytest.mark.parametrize("path", ["/health", "/info", "/v2/health/ready", "/metrics", "/v1/models"])
def test_status_routes_answer_and_let_it_sleep(backend: SleepingBackend, path: str) -> None:
    with client(service(backend)) as http:
        assert http.get(path).status_code == 200
    assert not backend.woke_up


def test_health_and_info_say_that_it_is_asleep(backend: SleepingBackend) -> None:
    with client(service(backend)) as http:
        health, info = http.get("/health").json(), http.get("/info").json()
    assert (health["status"], health["asleep"]) == ("ok", True)
    assert info["asleep"] is True
    Draft202012Validator(schema_of(HealthReply)).validate(health)
    Draft202012Validator(schema_of(InfoReply)).validate(info)


def test_each_model_is_reported_on_its_own(backend: SleepingBackend) -> None:
    awake = SleepingBackend()
    awake.count = ReplicaCount(1)
    with client(service(awake, "awake"), service(backend, "asleep")) as http:
        reply = http.get("/health").json()
    assert "asleep" not in reply
    assert "asleep" not in reply["models"]["awake"]
    assert reply["models"]["asleep"]["asleep"] is True
    assert not backend.woke_up
    assert len(awake.groups) == 1  # a model that can't sleep is probed


def test_health_checks_compute_no_text_while_it_is_awake(backend: SleepingBackend) -> None:
    """A text a check would keep it awake for ever."""
    backend.count = AWAKE
    with client(service(backend, health_max_age_s=0.001)) as http:
        for _ in range(3):
            reply = http.get("/health").json()
            assert reply["status"] == "ok"
            assert "asleep" not in reply
    assert not backend.groups


def test_a_model_that_cannot_start_is_not_healthy(backend: SleepingBackend) -> None:
    backend.count = ReplicaCount(0, may_be_zero=True, failure="No CPU is left.")
    with client(service(backend)) as http:
        response = http.get("/health")
    assert response.status_code == 503
    assert "No CPU is left." in response.json()["reason"]
    assert "asleep" not in response.json()


def test_while_the_controller_does_not_answer_a_probe_decides(backend: SleepingBackend) -> None:
    backend.count = None
    with client(service(backend)) as http:
        assert http.get("/health").json()["status"] == "ok"
    assert backend.groups


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": "text"}),
        ("/embed", {"inputs": "text"}),
        ("/tokenize", {"inputs": "text"}),
    ],
)
def test_past_the_time_limit_of_a_request_retry_after_says_when(
    backend: SleepingBackend, path: str, body: dict[str, str]
) -> None:
    backend.delay_s = 60
    with client(service(backend, request_timeout_s=0.05)) as http:
        response = http.post(path, json=body)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert "scaled to zero" in response.text


def test_past_the_time_limit_of_a_model_that_is_awake_the_status_stays(
    backend: SleepingBackend,
) -> None:
    backend.delay_s, backend.count = 60, AWAKE
    with client(service(backend, request_timeout_s=0.05)) as http:
        assert http.post("/v1/embeddings", json={"input": "text"}).status_code == 504
