"""EmbedServe as `serve_config.yaml` says, but for the number of replicas, which is held still.

A benchmark that lasts seconds would else measure how a service grows, not how fast it is.
"""

import json
from pathlib import Path

import psutil
import yaml

from .base import Peer, PeerProcess

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


def _command(at: PeerProcess, config: Path, replicas: int, cpus: int | None) -> list[str]:
    content = yaml.safe_load(config.read_text("utf-8"))
    args = content["applications"][0].setdefault("args", {})
    args["cache"] = {"data_dir": str(at.scratch / "cache")}  # nothing is known from the last run
    for deployment in content["applications"][0]["deployments"]:
        if deployment["name"] == "Embedder":
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = replicas
            if cpus is not None:
                deployment["ray_actor_options"] = {"num_cpus": cpus}
    file = at.scratch / "embedserve.yaml"
    file.write_text(json.dumps(content))
    return [at.python, "-m", "serve_app.command.main", "serve", str(file), "--port", str(at.port)]


def embedserve(
    name: str, title: str, replicas: int, config: Path = CONFIG, cpus: int | None = None
) -> Peer:
    """The service with so many Embedder replicas, of so many cores each if that is said."""
    return Peer(
        name=name,
        title=title,
        command=lambda at: _command(at, config, replicas, cpus),
        env={"RAY_ADDRESS": "local"},
    )


def available_cores() -> int:
    """The CPU cores of this machine that we may use."""
    return len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1


#: As many replicas as there are pairs of cores, the most that fit on this machine.
PEER = embedserve("embedserve", "EmbedServe", max(1, available_cores() // 2))
INLINE = embedserve(
    "embedserve-inline",
    "EmbedServe, inline",
    max(1, available_cores() // 2),
    CONFIG.parent / "configs" / "one-machine.yaml",
)
#: One replica of one core, and as many of them as there are cores.
ONE_CORE = embedserve("embedserve-1", "EmbedServe, one core", 1, cpus=1)
EACH_CORE = embedserve("embedserve-n", "EmbedServe, a replica for each core", available_cores(), cpus=1)
