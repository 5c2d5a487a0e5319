"""Which service a replica belongs to, among those that may run on its machine."""

import os
from typing import Any

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
    """The shared tier of this replica's application.

    Raises:
        ConfigurationError: see `L2Cache`.
    """
    return L2Cache(config, space_id, **_service(), meter=meter)


def open_quota_store(config: CacheConfig, meter: Meter) -> QuotaStore:
    """What counts the quotas of keys: on the server that the cache is on, where there is one.

    It asks for the server only when some key has a limit. An embedded server is of one machine,
    so each machine of a cluster counts by itself.
    """
    if config.url.get_secret_value() == "none":
        return MemoryQuotaStore()
    return SharedQuotaStore(
        SharedServer(config, **_service()),
        prefix=config.prefix,
        timeout_s=config.timeout_s,
        meter=meter,
    )


async def http_host() -> str | None:
    """What this Serve instance's HTTP listens on; None where it has none.

    It is fixed when Serve starts. Ray has no public call for it, so this asks the controller, as
    the replica itself does for its own port.
    """
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    if await controller.get_proxy_location.remote() == ProxyLocation.Disabled:
        return None
    options = await controller.get_http_config.remote()
    host: str | None = options.host
    return host


def _service() -> dict[str, Any]:
    """What tells this service from others on the machine, and whose end is its end.

    A service is an application on a cluster, and it ends at the latest with the cluster's process
    on this machine, which has started this one.
    """
    cluster: str = ray.get_runtime_context().gcs_address
    application = serve.get_replica_context().app_name
    return {"service": f"{cluster}/{application}", "owner_pid": os.getppid()}
