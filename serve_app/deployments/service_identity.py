"""The identity of a replica's service, and the stores that its replicas share.

The identity selects the embedded cache server among those of all services on the machine.
"""

import os
from typing import Any, TypedDict

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import ProxyLocation

from serve_app.access.quota import MemoryQuotaStore, QuotaStore
from serve_app.access.shared_quota import SharedQuotaStore
from serve_app.cache.l2 import L2Cache
from serve_app.config import CacheConfig
from serve_app.metrics import Meter
from serve_app.valkey.shared_server import SharedServer


def open_l2_cache(config: CacheConfig, space_id: str, meter: Meter) -> L2Cache:
    """Returns the L2 cache of this replica's service.

    Raises:
        ConfigurationError: see `L2Cache`.
    """
    server = SharedServer(config, **current_service())
    return L2Cache(config, space_id, server=server, meter=meter)


def open_quota_store(config: CacheConfig, meter: Meter) -> QuotaStore:
    """Returns the quota store of API keys: on the cache server if there is one, else in memory.

    The store connects once a key has a limit. An embedded server belongs to one machine, so each
    machine of a cluster then counts separately.
    """
    if config.url.get_secret_value() == "none":
        return MemoryQuotaStore()
    return SharedQuotaStore(
        SharedServer(config, **current_service()),
        prefix=config.prefix,
        timeout_s=config.timeout_s,
        meter=meter,
    )


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


class ServiceIdentity(TypedDict):
    """One application on one cluster, and the process that outlives it on this machine."""

    service: str  #: `<GCS address>/<application>`
    owner_pid: int  #: the raylet, which started this replica


def current_service() -> ServiceIdentity:
    """Returns the identity of the service that this replica belongs to."""
    cluster: str = ray.get_runtime_context().gcs_address
    application = serve.get_replica_context().app_name
    return {"service": f"{cluster}/{application}", "owner_pid": os.getppid()}
