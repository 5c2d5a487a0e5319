"""The resources that Ray assigns to a replica."""

from collections.abc import Mapping
from typing import Any

#: Ray's names of resources → the options of `ray_actor_options`.
_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}


def replica_resources(options: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, float]:
    """Returns the resources of a replica: as the file sets them, or else as they are now.

    Args:
        options: `ray_actor_options` of the deployment in the file.
        running: Ray's description of the deployment that runs.
    """
    required: dict[str, float] = {**running.get("required_resources", {})}
    for resource, option in _OPTIONS.items():
        if option in options:
            required[resource] = options[option]
    return {**required, **options.get("resources", {})}
