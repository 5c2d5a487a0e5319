import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.serve.config import ProxyLocation

from serve_app.deployments import service_identity
from serve_app.deployments.service_identity import current_service, http_host
from serve_app.valkey.server_address import ServerAddress


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
        nodes=list,
        get_runtime_context=lambda: SimpleNamespace(
            gcs_address="10.0.0.1:6379", get_node_id=lambda: "this"
        ),
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


@pytest.mark.parametrize(("head", "finds_server"), [("this", False), ("other", True)])
@pytest.mark.usefixtures("serve_context")
async def test_other_nodes_find_the_cache_server_of_the_head(
    head: str, finds_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {
            "NodeID": name,
            "Resources": {"CPU": 1} | ({"node:__internal_head__": 1} if name == head else {}),
        }
        for name in ("this", "other")
    ]
    address = ServerAddress("10.0.0.1", 4000, "secret")

    async def remote() -> ServerAddress:
        return address

    methods = []

    def options(method_name: str, **_: object) -> Any:
        methods.append(method_name)
        return SimpleNamespace(remote=remote)

    monkeypatch.setattr("serve_app.deployments.service_identity.ray.nodes", lambda: nodes)
    find = current_service(cast(Any, SimpleNamespace(options=options))).get("find_server")
    assert (find is not None) == finds_server
    if find is not None:
        assert await find() == address
        assert methods == ["address"]
