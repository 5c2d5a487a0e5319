"""Whether new replicas start before those that they replace stop: if the cluster has room."""

import copy
from collections.abc import Mapping
from typing import Any

from serve_app.autoscale.cluster_room import count_fitting
from serve_app.command.replica_resources import replica_resources
from serve_app.command.rollout import Details
from serve_app.config import AppConfig, deployment_names

_SETTING = "max_surge_percent"


def with_surge(
    config: Mapping[str, Any], running: Details, free: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, Any], list[str]]:
    """Returns a copy of a configuration that replaces replicas without a gap, where it can be.

    Ray stops a replica before it starts the one that replaces it, unless `max_surge_percent` is
    set. With it, a replica for which no machine has room would be waited for without end. So all
    deployments get it if one more replica of each fits, and none otherwise: an Ingress that goes on
    while its Embedder is gone could only refuse requests.

    Args:
        config: the content of a configuration file.
        running: Ray's description of the applications that run.
        free: machine → its free resources.

    Returns:
        The configuration, and the deployments without room. A deployment that sets
        `max_surge_percent` itself keeps its value.
    """
    result = copy.deepcopy(dict(config))
    application = result["applications"][0]
    names = deployment_names(AppConfig.parse(application.get("args")))
    entries: dict[str, dict[str, Any]] = {d["name"]: d for d in application.get("deployments", [])}
    options = {name: entry.get("ray_actor_options", {}) for name, entry in entries.items()}
    present = running["applications"].get(application["name"], {}).get("deployments", {})
    without_room = [
        name
        for name in names
        if name in present
        and count_fitting(replica_resources(options.get(name, {}), present[name]), free, {}) < 1
    ]
    if not without_room:
        for name in names:
            entries.setdefault(name, {"name": name}).setdefault(_SETTING, 100)
        application["deployments"] = [*entries.values()]
    return result, without_room
