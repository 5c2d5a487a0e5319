"""What Ray knows of the service that a replica belongs to."""

import os
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import ProxyLocation
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.retrying_call import RetryingCall
from serve_app.live.replica_sample import ReplicaIdentity
from serve_app.valkey.shared_server import ServiceIdentity

#: The resource that Ray gives to the head only.
HEAD = "node:__internal_head__"


async def http_host() -> str | None:
    """Returns the host that Serve's HTTP listens on; None if HTTP is disabled.

    It is fixed when Serve starts. Ray has no public API for it, so this calls the controller.
    """
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    if await controller.get_proxy_location.remote() == ProxyLocation.Disabled:
        return None
    options = await controller.get_http_config.remote()
    host: str | None = options.host
    return host


def current_replica() -> ReplicaIdentity:
    """Returns the identity of this replica."""
    context = serve.get_replica_context()
    return ReplicaIdentity(context.deployment, context.replica_tag, node_address())


def node_address() -> str:
    """Returns the address of this node, at which Ray reaches it from other nodes."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def current_service(cache_server: DeploymentHandle[Any] | None = None) -> ServiceIdentity:
    """Returns the identity of the service: `<GCS address>/<application>`, and the raylet's pid.

    Args:
        cache_server: the deployment CacheServer; on other nodes than the head, it finds the
            embedded server.
    """
    cluster: str = ray.get_runtime_context().gcs_address
    application = serve.get_replica_context().app_name
    identity: ServiceIdentity = {
        "service": f"{cluster}/{application}",
        "owner_pid": os.getppid(),
    }
    if cache_server is not None and not _is_on_head():
        identity["find_server"] = RetryingCall(cache_server, "address")
    return identity


def _is_on_head() -> bool:
    own = ray.get_runtime_context().get_node_id()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return any(node["NodeID"] == own and HEAD in node["Resources"] for node in nodes)
