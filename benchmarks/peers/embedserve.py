"""EmbedServe as `serve_config.yaml` says, but for the number of replicas, which is held still.

A benchmark that lasts seconds would else measure how a service grows, not how fast it is.
"""

import json
from pathlib import Path

import psutil
import yaml

from benchmarks.peers.base import Peer, Place

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


def _command(at: Place, config: Path, replicas: int) -> list[str]:
    content = yaml.safe_load(config.read_text("utf-8"))
    for deployment in content["applications"][0]["deployments"]:
        if deployment["name"] == "Embedder":
            del deployment["autoscaling_config"]
            deployment["num_replicas"] = replicas
    file = at.scratch / "embedserve.yaml"
    file.write_text(json.dumps(content))
    return [at.python, "-m", "serve_app.cli", "serve", str(file), "--port", str(at.port)]


def embedserve(name: str, title: str, replicas: int, config: Path = CONFIG) -> Peer:
    """The service with so many Embedder replicas."""
    return Peer(
        name=name,
        title=title,
        command=lambda at: _command(at, config, replicas),
        env={"RAY_ADDRESS": "local"},
    )


def cores() -> int:
    """The CPU cores of this machine that we may use."""
    return len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1


#: As many replicas as cores, the most that `serve_config.yaml` grows to on this machine.
PEER = embedserve("embedserve", "EmbedServe", cores())
ONE_REPLICA = embedserve("embedserve-1", "EmbedServe, one replica", 1)
