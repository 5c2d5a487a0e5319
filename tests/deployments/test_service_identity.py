import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve.config import ProxyLocation

from serve_app.deployments import service_identity
from serve_app.deployments.service_identity import current_service, http_host


class FakeController:
    """The part of Serve's controller that reports HTTP options."""

    def __init__(self, host: str | None, location: ProxyLocation) -> None:
        self._host = host
        self._location = location
        self.get_http_config = SimpleNamespace(remote=self._http_config)
        self.get_proxy_location = SimpleNamespace(remote=self._proxy_location)

    async def _http_config(self) -> Any:
        return SimpleNamespace(host=self._host)

    async def _proxy_location(self) -> ProxyLocation:
        return self._location


@pytest.fixture
def serve_context(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ray = SimpleNamespace(
        get_runtime_context=lambda: SimpleNamespace(gcs_address="10.0.0.1:6379")
    )
    fake_serve = SimpleNamespace(get_replica_context=lambda: SimpleNamespace(app_name="embedserve"))
    monkeypatch.setattr(service_identity, "ray", fake_ray)
    monkeypatch.setattr(service_identity, "serve", fake_serve)


@pytest.mark.parametrize(
    ("host", "location", "expected"),
    [
        ("127.0.0.1", ProxyLocation.HeadOnly, "127.0.0.1"),
        ("0.0.0.0", ProxyLocation.EveryNode, "0.0.0.0"),
        ("0.0.0.0", ProxyLocation.Disabled, None),
        (None, ProxyLocation.EveryNode, None),
    ],
)
async def test_http_host_is_the_host_that_serve_listens_on(
    host: str | None,
    location: ProxyLocation,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    controller = FakeController(host, location)
    monkeypatch.setattr(ray, "get_actor", lambda name, namespace: controller)
    assert await http_host() == expected


@pytest.mark.usefixtures("serve_context")
def test_a_service_is_one_application_on_one_cluster() -> None:
    assert current_service() == {
        "service": "10.0.0.1:6379/embedserve",
        "owner_pid": os.getppid(),
    }
