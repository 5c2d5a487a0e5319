"""EmbedServe with its configuration files, with a fixed number of replicas, and without Ray.

Autoscaling is off: a run of a few seconds would measure how a service scales up instead of how
fast it is.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.config import TOPOLOGIES

from ..paths import CONFIG
from .base import Peer, PeerProcess

_ONE_MACHINE = CONFIG.parent / "configs" / "one-machine.yaml"
#: The deployments whose replicas hold the model.
_MODEL_DEPLOYMENTS = ("Embedder", "EmbedServer")


def _write_config(
    process: PeerProcess,
    config: Path,
    replicas: int,
    cpus: int | None,
    request_settings: Mapping[str, Any],
) -> Path:
    content = yaml.safe_load(config.read_text("utf-8"))
    application = content["applications"][0]
    arguments = application.setdefault("args", {})
    # A new data directory, so that no run is answered from an earlier one's cache.
    arguments["cache"] = {"data_dir": str(process.scratch / "cache")}
    if process.precision is not None:
        arguments["precision"] = process.precision
    ingress = TOPOLOGIES[arguments.get("topology", "separate")][0]
    for deployment in application["deployments"]:
        if deployment["name"] == ingress:
            deployment.setdefault("user_config", {}).update(request_settings)
        if deployment["name"] in _MODEL_DEPLOYMENTS:
            deployment.pop("autoscaling_config", None)
            deployment["num_replicas"] = replicas
            if cpus is not None:
                deployment["ray_actor_options"] = {"num_cpus": cpus}
    file = process.scratch / "embedserve.yaml"
    file.write_text(json.dumps(content))
    return file


def embedserve_peer(
    name: str,
    title: str,
    replicas: int,
    config: Path = CONFIG,
    cpus: int | None = None,
    *,
    request_settings: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
) -> Peer:
    """Returns EmbedServe as a peer.

    Args:
        name: in records.
        title: in tables and plots.
        replicas: the number of replicas that hold the model.
        config: the configuration file.
        cpus: the cores of each replica; None leaves the configuration's.
        request_settings: `user_config` of the deployment that takes requests, in addition to the
            configuration's.
        options: of `embedserve serve`.
    """

    def command(process: PeerProcess) -> list[str]:
        file = _write_config(process, config, replicas, cpus, request_settings or {})
        serve = ["-m", "serve_app.command.main", "serve", str(file), "--port", str(process.port)]
        return [process.python, *serve, *options]

    return Peer(name=name, title=title, command=command, env={"RAY_ADDRESS": "local"})


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1


#: A replica for each pair of cores, the most that fit on this machine.
_REPLICAS = max(1, available_cores() // 2)
PEER = embedserve_peer("embedserve", "EmbedServe", _REPLICAS)
COLOCATED = embedserve_peer(
    "embedserve-colocated", "EmbedServe, colocated", _REPLICAS, _ONE_MACHINE
)
STANDALONE = embedserve_peer(
    "embedserve-standalone",
    "EmbedServe, standalone",
    1,
    _ONE_MACHINE,
    options=["--standalone"],
)
#: Without L1 each hit is read from the shared server, as after a restart.
_WITHOUT_L1 = {"l1_max_bytes": 0}
SHARED_HITS = embedserve_peer(
    "embedserve-shared-hits",
    "EmbedServe without L1",
    _REPLICAS,
    request_settings=_WITHOUT_L1,
)
COLOCATED_SHARED_HITS = embedserve_peer(
    "embedserve-colocated-shared-hits",
    "EmbedServe, colocated, without L1",
    _REPLICAS,
    _ONE_MACHINE,
    request_settings=_WITHOUT_L1,
)
#: One replica with one core, and a replica with one core for each core of the machine.
ONE_REPLICA = embedserve_peer("embedserve-1", "EmbedServe, one core", 1, cpus=1)
REPLICA_PER_CORE = embedserve_peer(
    "embedserve-n", "EmbedServe, a replica for each core", available_cores(), cpus=1
)


def baseline_peer(checkout: Path) -> Peer:
    """Returns the EmbedServe of another checkout, with its own `serve_config.yaml`."""
    peer = embedserve_peer(
        "embedserve-baseline", "EmbedServe, baseline", _REPLICAS, checkout / CONFIG.name
    )
    path = f"{checkout}:{checkout / 'clients' / 'python'}"
    return dataclasses.replace(peer, cwd=checkout, env={**peer.env, "PYTHONPATH": path})
