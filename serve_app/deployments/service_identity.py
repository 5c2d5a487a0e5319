"""What Ray knows of the service that a replica belongs to."""

import os
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import ProxyLocation

from serve_app.live.replica_sample import ReplicaIdentity
from serve_app.valkey.shared_server import ServiceIdentity


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
    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return ReplicaIdentity(context.deployment, context.replica_tag, node)


def current_service() -> ServiceIdentity:
    """Returns the identity of the service: `<GCS address>/<application>`, and the raylet's pid."""
    cluster: str = ray.get_runtime_context().gcs_address
    application = serve.get_replica_context().app_name
    return {"service": f"{cluster}/{application}", "owner_pid": os.getppid()}
