"""Loads the engines of a deployment once, on the cluster, outside of any replica."""

from typing import Any

from serve_app.config import AppConfig
from serve_app.deployments.replica_engine import assigned_cpus, load_engines
from serve_app.engines.affinity import available_cpus
from serve_app.meter import Meter
from serve_app.model_prep.engine_selection import select_engines


def load_once(args: dict[str, Any], deployment: str) -> None:
    """Loads the engines that a replica of the deployment would, and computes with each.

    Runs as a task of Ray with the GPU and the memory of a replica.

    Args:
        args: those of the application, as in its configuration file.
        deployment: the name of one that runs models.

    Raises:
        EmbedServeError: what the start of a replica would raise.
    """
    config = AppConfig.parse(args)
    selections = [
        selection
        for selection in select_engines(config)
        if config.topology == "colocated" or selection.model.deployment == deployment
    ]
    load_engines(config, selections, assigned_cpus(), available_cpus(), Meter())
