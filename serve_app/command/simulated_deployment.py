"""A deployment of a configuration file, as the simulator takes it."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.autoscale.policy import Bounds
from serve_app.command.config_file import add_config_argument, read_config
from serve_app.command.engine_measurement import EngineRecord
from serve_app.config import EmbedderSettings, ModelConfig, PolicySettings
from serve_app.errors import ConfigurationError
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.service import SimulatedService

_HELP_COST = (
    "duration of a batch in seconds: FIXED + TOKEN × padded tokens, such as 0.015,0.0003 (default: "
    "`batch_cost` of the model, if it has one)"
)


class SimulatedDeployment(NamedTuple):
    """The settings of a deployment that autoscaling depends on."""

    name: str
    service: SimulatedService
    policy: PolicySettings


def add_deployment_arguments(parser: argparse.ArgumentParser, *, cost: bool = True) -> None:
    """Adds the options that `read_deployment` reads.

    Args:
        parser: the parser of a command.
        cost: whether the command needs the cost of a batch, and so the options of a replica.
    """
    add_config_argument(parser, flag="--config")
    parser.add_argument(
        "--deployment",
        metavar="NAME",
        help="deployment of the file (default: the first one that runs models)",
    )
    if not cost:
        return
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cost", type=parse_cost, metavar="FIXED,TOKEN", help=_HELP_COST)
    source.add_argument(
        "--record", type=Path, metavar="FILE", help="cost that `embedserve capacity measure` wrote"
    )
    parser.add_argument(
        "--startup",
        type=float,
        metavar="SECONDS",
        help="how long a replica takes to start (default: `default_startup_s` of the policy)",
    )
    parser.add_argument("--min-replicas", type=int, metavar="N", help="in place of the file's")
    parser.add_argument("--max-replicas", type=int, metavar="N", help="in place of the file's")


def parse_cost(text: str) -> BatchCost:
    """Returns the cost of `FIXED,TOKEN`, in seconds."""
    match = re.fullmatch(r"\s*([\d.eE+-]+)\s*,\s*([\d.eE+-]+)\s*", text)
    try:
        if match is None:
            raise ValueError
        cost = BatchCost(float(match[1]), float(match[2]))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} isn't FIXED,TOKEN in seconds, such as 0.015,0.0003"
        ) from None
    if cost.fixed_s < 0 or cost.token_s <= 0:
        raise argparse.ArgumentTypeError("FIXED must be at least 0, and TOKEN above 0")
    return cost


def read_deployment(arguments: argparse.Namespace) -> SimulatedDeployment:
    """Returns the deployment that the options select.

    Raises:
        ConfigurationError: the file has no such deployment, or its cost isn't known.
    """
    config, args = read_config(arguments.config, ray=False)
    models = (
        {"EmbedServer": args.served_models}
        if args.topology == "colocated"
        else {name: args.model_deployments[name] for name in args.engine_deployments}
    )
    name = arguments.deployment or next(iter(models), None)
    if name not in models:
        raise ConfigurationError(
            f"{arguments.config} has no deployment {name!r} that runs models; it has "
            f"{', '.join(models) or 'none'}."
        )
    deployment: Mapping[str, Any] = next(
        (d for d in config["applications"][0].get("deployments", []) if d["name"] == name), {}
    )
    scaling: Mapping[str, Any] = deployment.get("autoscaling_config") or {}
    policy = PolicySettings.parse((scaling.get("policy") or {}).get("policy_kwargs"))
    replicas = deployment.get("num_replicas", 1)
    lowest = arguments.min_replicas or scaling.get("min_replicas", replicas)
    highest = arguments.max_replicas or scaling.get("max_replicas", replicas)
    if not 0 <= lowest <= highest:
        raise ConfigurationError(
            f"{name}: min_replicas is {lowest} and max_replicas is {highest}. The range is empty: "
            "set --min-replicas or --max-replicas."
        )
    fields = EmbedderSettings.model_fields.keys() & (deployment.get("user_config") or {}).keys()
    settings = {field: deployment["user_config"][field] for field in fields}
    service = SimulatedService(
        arguments.cost or _cost(name, models[name], arguments.record),
        EmbedderSettings.parse(settings),
        startup_s=arguments.startup or policy.default_startup_s,
        bounds=Bounds(lowest, highest),
        # HAProxy's choice, or that of the service's router
        router="least_requests" if args.topology == "colocated" else "least_tokens",
    )
    return SimulatedDeployment(name, service, policy)


def _cost(name: str, models: Sequence[ModelConfig], record: Path | None) -> BatchCost:
    if record is not None:
        return EngineRecord.read_cost(record)
    for model in models:
        if model.batch_cost.token_s > 0:
            return BatchCost(model.batch_cost.fixed_s, model.batch_cost.token_s)
    raise ConfigurationError(
        f"How long a batch of the deployment {name} takes isn't known. Measure it with `embedserve "
        "capacity measure -o FILE` and pass --record FILE, or set --cost FIXED,TOKEN."
    )
