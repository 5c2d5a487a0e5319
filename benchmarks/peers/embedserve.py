"""EmbedServe with `serve_config.yaml` and a fixed number of replicas.

Autoscaling is off: a run of a few seconds would measure how a service scales up instead of how
fast it is.
"""

import json
from pathlib import Path

import psutil
import yaml

from ..paths import CONFIG
from .base import Peer, PeerProcess


def _command(process: PeerProcess, config: Path, replicas: int, cpus: int | None) -> list[str]:
    content = yaml.safe_load(config.read_text("utf-8"))
    application = content["applications"][0]
    # A new cache folder, so that no run is answered from an earlier one's cache.
    application.setdefault("args", {})["cache"] = {"folder": str(process.scratch / "cache")}
    for deployment in application["deployments"]:
        if deployment["name"] == "Embedder":
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = replicas
            if cpus is not None:
                deployment["ray_actor_options"] = {"num_cpus": cpus}
    file = process.scratch / "embedserve.yaml"
    file.write_text(json.dumps(content))
    serve = ["-m", "serve_app.command.main", "serve", str(file), "--port", str(process.port)]
    return [process.python, *serve]


def embedserve_peer(
    name: str, title: str, replicas: int, config: Path = CONFIG, cpus: int | None = None
) -> Peer:
    """Returns EmbedServe as a peer.

    Args:
        name: in records.
        title: in tables and plots.
        replicas: the number of Embedder replicas.
        config: the configuration file.
        cpus: the cores of each replica; None leaves the configuration's.
    """
    return Peer(
        name=name,
        title=title,
        command=lambda process: _command(process, config, replicas, cpus),
        env={"RAY_ADDRESS": "local"},
    )


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1


#: A replica for each pair of cores, the most that fit on this machine.
_REPLICAS = max(1, available_cores() // 2)
PEER = embedserve_peer("embedserve", "EmbedServe", _REPLICAS)
COLOCATED = embedserve_peer(
    "embedserve-colocated",
    "EmbedServe, colocated",
    _REPLICAS,
    CONFIG.parent / "configs" / "one-machine.yaml",
)
#: One replica with one core, and a replica with one core for each core of the machine.
ONE_REPLICA = embedserve_peer("embedserve-1", "EmbedServe, one core", 1, cpus=1)
REPLICA_PER_CORE = embedserve_peer(
    "embedserve-n", "EmbedServe, a replica for each core", available_cores(), cpus=1
)
