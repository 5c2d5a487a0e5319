"""`/health` names the models whose vectors have moved, and stays healthy."""

from dataclasses import replace

from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import EngineInfo
from serve_app.web.app import create_app
from serve_app.web.dialects.status import HealthReply
from serve_app.web.schema.typed_dict import schema_of
from tests.fakes import SPEC, FakeBackend, FakeEngine


class DriftingBackend(FakeBackend):
    def __init__(self, drift: float | None) -> None:
        super().__init__()
        self.drift = drift

    async def describe(self) -> EngineInfo:
        return replace(FakeEngine.info, drift=self.drift)


def test_health_names_models_whose_vectors_have_moved() -> None:
    drifts = {"moved": 0.02, "stable": 1e-6, "unknown": None}
    services = [
        EmbedService(
            replace(SPEC, name=name, aliases=(), space_id=f"{name}-fp32"),
            DriftingBackend(drift),
            IngressSettings(),
        )
        for name, drift in drifts.items()
    ]
    with TestClient(create_app(Catalog(services))) as client:
        response = client.get("/health")
    reply = response.json()
    assert (response.status_code, reply["status"]) == (200, "ok")
    assert reply["drift"] == {"moved": 0.02}
    Draft202012Validator(schema_of(HealthReply)).validate(reply)


def test_health_of_stable_models_has_no_drift() -> None:
    service = EmbedService(SPEC, DriftingBackend(1e-6), IngressSettings())
    with TestClient(create_app(Catalog([service]))) as client:
        assert "drift" not in client.get("/health").json()
