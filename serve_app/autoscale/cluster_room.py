"""How many replicas of a deployment the nodes of the cluster have resources for."""

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

#: A replica that has no node after this time waits for resources.
_MAX_PLACEMENT_S = 30.0


def cluster_room(deployment_id: Any) -> int | None:
    """Returns the number of replicas that run, start, or could start; None: unknown.

    Ray's controller calls it. It reads what the controller knows of nodes and replicas, so no call
    leaves the process. Ray has no public interface for that: anything unexpected means unknown.
    """
    try:
        return _room(_controller(), deployment_id)
    except Exception:
        return None


def _controller() -> Any:
    """Returns the Serve controller of this process."""
    from ray._private.worker import global_worker

    return next(
        actor
        for actor in global_worker.actors.values()
        if hasattr(actor, "cluster_node_info_cache")
    )


def _room(controller: Any, deployment_id: Any) -> int | None:
    deployment = controller.deployment_state_manager._deployment_states[deployment_id]
    config = deployment.target_info.replica_config
    if config.placement_group_bundles or config.ray_actor_options.get("label_selector"):
        return None
    alive = [
        replica
        for replica in deployment._replicas.get()
        if replica.actor_details.state not in ("STOPPING", "STOPPED")
    ]
    placed = Counter(replica.actor_node_id for replica in alive)
    now_s = time.time()
    unplaced = [replica for replica in alive if replica.actor_node_id is None]
    starting = sum(
        now_s - (replica._start_time or now_s) < _MAX_PLACEMENT_S for replica in unplaced
    )
    placed.pop(None, None)
    available = controller.cluster_node_info_cache.get_available_resources_per_node()
    limit = config.max_replicas_per_node or math.inf
    fitting = count_fitting(config.resource_dict, available, placed, limit)
    # The resources of those that start may or may not be taken yet.
    return None if fitting == math.inf else placed.total() + max(starting, int(fitting))


def count_fitting(
    required: Mapping[str, float],
    available: Mapping[str, Mapping[str, float]],
    placed: Mapping[str, int],
    max_per_node: float = math.inf,
) -> float:
    """Returns how many more replicas fit; infinity if they need no resources.

    Args:
        required: resources of one replica.
        available: node → its free resources.
        placed: node → its replicas.
        max_per_node: limit of the replicas on a node.
    """
    needs = {name: amount for name, amount in required.items() if amount}
    total = 0.0
    for node, free in available.items():
        # Ray counts in steps of 0.0001.
        fits = [math.floor(free.get(name, 0) / amount + 1e-4) for name, amount in needs.items()]
        total += max(min([*fits, max_per_node - placed.get(node, 0)]), 0)
    return total
