"""Which service a replica belongs to, among those that may run on its machine."""

import os

import ray
from ray import serve

from serve_app.cache.second_tier import SecondTier
from serve_app.config import CacheConfig
from serve_app.metrics import Meter


def open_second_tier(config: CacheConfig, space_id: str, meter: Meter) -> SecondTier:
    """The shared tier of this replica's application.

    A service is an application on a cluster, and it ends at the latest with the cluster's process
    on this machine, which has started this one.

    Raises:
        ConfigurationError: see `SecondTier`.
    """
    cluster: str = ray.get_runtime_context().gcs_address
    application = serve.get_replica_context().app_name
    return SecondTier(
        config,
        space_id,
        service=f"{cluster}/{application}",
        owner_pid=os.getppid(),
        meter=meter,
    )
