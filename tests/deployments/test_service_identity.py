import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve.config import ProxyLocation

from serve_app.access.quota import MemoryQuotaStore
from serve_app.access.shared_quota import SharedQuotaStore
from serve_app.config import CacheConfig
from serve_app.deployments import service_identity
from serve_app.deployments.service_identity import http_host, open_quota_store
from serve_app.metrics import Meter


class FakeController:
    """Serve's controller, as far as it is asked."""

    def __init__(self, host: str | None, location: ProxyLocation) -> None:
        self._host = host
        self._location = location
        self.get_http_config = SimpleNamespace(remote=self._config)
        self.get_proxy_location = SimpleNamespace(remote=self._place)

    async def _config(self) -> Any:
        return SimpleNamespace(host=self._host)

    async def _place(self) -> ProxyLocation:
        return self._location


@pytest.fixture
def on_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    serve = SimpleNamespace(get_replica_context=lambda: SimpleNamespace(app_name="embedserve"))
    monkeypatch.setattr(service_identity, "ray", fake)
    monkeypatch.setattr(service_identity, "serve", serve)


@pytest.mark.parametrize(
    ("host", "location", "told"),
    [
        ("127.0.0.1", ProxyLocation.HeadOnly, "127.0.0.1"),
        ("0.0.0.0", ProxyLocation.EveryNode, "0.0.0.0"),
        ("0.0.0.0", ProxyLocation.Disabled, None),
        (None, ProxyLocation.EveryNode, None),
    ],
)
async def test_what_http_listens_on(
    host: str | None,
    location: ProxyLocation,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller = FakeController(host, location)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: controller)
    assert await http_host() == told


@pytest.mark.usefixtures("on_serve")
def test_quotas_are_counted_where_the_cache_is() -> None:
    shared = open_quota_store(CacheConfig(), Meter())
    assert isinstance(shared, SharedQuotaStore)
    assert shared.state == "down"  # until some key has a limit
    assert isinstance(
        open_quota_store(CacheConfig.model_validate({"url": "none"}), Meter()), MemoryQuotaStore
    )


@pytest.mark.usefixtures("on_serve")
def test_replicas_of_one_application_on_one_machine_are_one_service() -> None:
    assert service_identity._service() == {
        "service": "10.0.0.1:6379/embedserve",
        "owner_pid": os.getppid(),
    }
