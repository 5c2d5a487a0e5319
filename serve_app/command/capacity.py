"""`embedserve capacity`: measures a replica, and plans how many of them a load needs."""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from serve_app.command.engine_measurement import EngineRecord, measure_engine
from serve_app.command.simulated_deployment import (
    SimulatedDeployment,
    add_deployment_arguments,
    read_deployment,
)
from serve_app.config import TOKEN_POLICY
from serve_app.simulation.plan import CapacityPlan, Wish, plan_capacity

_DAYS_PER_MONTH = 365.25 / 12
_SECONDS = {"ms": 0.001, "s": 1.0}
_PER_SECOND = {"s": 1.0, "min": 1 / 60, "h": 1 / 3600, "d": 1 / 86_400}


def add_commands(commands: Any) -> None:
    """Adds `capacity` to the parser."""
    capacity = commands.add_parser(
        "capacity",
        help="measure a replica, and plan how many of them a load needs",
        description="Measure how long batches take on this machine, and plan replicas from that.",
    ).add_subparsers(metavar="COMMAND", required=True)
    _add_measure(capacity)
    _add_plan(capacity)


def _add_measure(capacity: Any) -> None:
    measure = capacity.add_parser(
        "measure",
        help="measure how long batches take on this machine",
        description="Load the model of a deployment, compute batches of different sizes for some "
        "seconds, and print the cost of a batch. Nothing else should run meanwhile.",
    )
    add_deployment_arguments(measure, cost=False)
    measure.add_argument(
        "--threads", type=int, default=2, metavar="N", help="CPUs of a replica (default: 2)"
    )
    measure.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the record")
    measure.set_defaults(run=_measure)


def _add_plan(capacity: Any) -> None:
    plan = capacity.add_parser(
        "plan",
        help="print replicas, cost and configuration for a load and a latency",
        description="Find by simulation the fewest replicas that keep a latency at the busiest\n"
        "time, the bounds of autoscaling, what they cost, and the configuration to paste.",
        epilog="example:\n"
        "  embedserve capacity measure -o replica.json\n"
        "  embedserve capacity plan --record replica.json --rate 300/s --tokens 20 --p99 50ms \\\n"
        "      --bulk-tokens-per-day 5e8 --price 0.34 --replicas-per-machine 4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_deployment_arguments(plan)
    _add_wish(plan)
    plan.add_argument("--price", type=float, metavar="N", help="price of a machine for an hour")
    plan.add_argument(
        "--replicas-per-machine", type=int, default=1, metavar="N", help="(default: 1)"
    )
    output = plan.add_mutually_exclusive_group()
    output.add_argument("--yaml", action="store_true", help="print the configuration only")
    output.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


def _add_wish(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "--rate",
        type=_rate,
        required=True,
        metavar="RATE",
        help="queries at the busiest time: 300/s, 5000/min",
    )
    plan.add_argument(
        "--low-rate", type=_rate, metavar="RATE", help="at the quietest time (default: a tenth)"
    )
    plan.add_argument(
        "--tokens",
        type=float,
        default=20.0,
        metavar="N",
        help="mean tokens of a query (default: 20)",
    )
    plan.add_argument(
        "--p99",
        type=_duration,
        required=True,
        metavar="TIME",
        help="99 of 100 queries are answered within this: 50ms, 0.5s",
    )
    plan.add_argument(
        "--busy-hours",
        type=_hours,
        default=10.0,
        metavar="H",
        help="hours of a day at --rate, the others are at --low-rate (default: 10)",
    )
    plan.add_argument(
        "--bulk-tokens-per-day",
        type=float,
        default=0.0,
        metavar="N",
        help="tokens of documents, computed in the quiet hours",
    )
    plan.add_argument(
        "--overhead",
        type=_duration,
        default=0.003,
        metavar="TIME",
        help="HTTP and calls between processes, for each query (default: 3ms)",
    )


def _measure(arguments: argparse.Namespace) -> int:
    record = measure_engine(arguments.config, arguments.deployment, arguments.threads)
    Console().print(_measurement_table(record))
    cost = record.cost
    print(
        f"A batch takes {1000 * cost.fixed_s:.3g} ms and {1e6 * cost.token_s:.3g} µs for each "
        f"padded token: --cost {cost.fixed_s:.6g},{cost.token_s:.6g}"
    )
    if arguments.output:
        record.write(arguments.output)
        print(f"Written to {arguments.output}.")
    return 0


def _measurement_table(record: EngineRecord) -> Table:
    title = f"{record.model}: {record.engine} at {record.precision}, {record.threads} CPUs"
    table = Table(title=title)
    for column in ("texts", "tokens each", "ms", "by the cost", "tokens/s"):
        table.add_column(column, justify="right")
    for batch in record.batches:
        tokens = batch.texts * batch.tokens
        table.add_row(
            f"{batch.texts}",
            f"{batch.tokens}",
            f"{1000 * batch.seconds:.2f}",
            f"{1000 * record.cost.seconds(tokens):.2f}",
            f"{tokens / batch.seconds:,.0f}",
        )
    return table


def _plan(arguments: argparse.Namespace) -> int:
    deployment = read_deployment(arguments)
    wish = Wish(
        arguments.rate,
        arguments.tokens,
        arguments.p99,
        arguments.low_rate or arguments.rate / 10,
        arguments.busy_hours,
        arguments.bulk_tokens_per_day,
        arguments.overhead,
    )
    service, policy = deployment.service, deployment.policy
    with Console(stderr=True).status("simulating"):
        plan = plan_capacity(wish, service, policy)
    costs = _costs(plan, arguments)
    if arguments.yaml:
        print(_yaml(deployment, plan), end="")
    elif arguments.json:
        print(json.dumps(_as_json(deployment, plan, costs), indent=2))
    else:
        _print(deployment, plan, costs)
    return 0


def _costs(plan: CapacityPlan, arguments: argparse.Namespace) -> dict[str, float]:
    """Returns costs by their name; empty without a price."""
    if arguments.price is None:
        return {}
    per_replica = arguments.price / arguments.replicas_per_machine
    machines = math.ceil(plan.busy_replicas / arguments.replicas_per_machine)
    per_day = plan.replica_hours_per_day * per_replica
    return {
        "an hour at the busiest time": machines * arguments.price,
        "a month": per_day * _DAYS_PER_MONTH,
        "a million tokens": per_day / plan.tokens_per_day * 1e6,
    }


def _print(deployment: SimulatedDeployment, plan: CapacityPlan, costs: Mapping[str, float]) -> None:
    wish, table = plan.wish, Table(show_header=False)
    rows = {
        "capacity of a replica": f"{plan.capacity_tokens_per_s:,.0f} tokens/s",
        "replicas at the busiest time": f"{plan.busy_replicas}, {plan.utilization:.0%} used",
        "replicas at the quietest time": f"{plan.quiet_replicas}",
        "more in the quiet hours, for bulk": f"{plan.bulk_replicas}",
        "latency at the busiest time": f"p50 {_ms(plan.p50_s)}, p99 {_ms(plan.p99_s)}",
        "standby replicas": f"{plan.min_idle_replicas}",
        "p99 while the rate rises": _ms(plan.rise_p99_s),
        "replica-hours of a day": f"{plan.replica_hours_per_day:,.0f}",
        **{f"price of {name}": f"{cost:,.4g}" for name, cost in costs.items()},
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    if plan.rise_p99_s > wish.p99_s:
        console.print(
            f"While the rate rises from {wish.low_texts_per_s:g} to {wish.texts_per_s:g} queries/s "
            f"within minutes, the p99 is above {_ms(wish.p99_s)}: a replica takes "
            f"{deployment.service.startup_s:g} s to start. Raise min_replicas to "
            f"{plan.busy_replicas} if that matters."
        )
    print(f"\n{_yaml(deployment, plan)}", end="")


def _yaml(deployment: SimulatedDeployment, plan: CapacityPlan) -> str:
    kwargs = {
        "target_queue_s": round(max(plan.wish.p99_s - plan.batch_target_s, 0.01), 4),
        "default_startup_s": deployment.service.startup_s,
    }
    if plan.min_idle_replicas:
        kwargs["min_idle_replicas"] = plan.min_idle_replicas
    entry = {
        "name": deployment.name,
        "user_config": {"batch_target_s": plan.batch_target_s},
        "autoscaling_config": {
            "min_replicas": plan.quiet_replicas,
            "max_replicas": plan.max_replicas,
            "metrics_interval_s": 1,
            "look_back_period_s": 2,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
            "policy": {"policy_function": TOKEN_POLICY, "policy_kwargs": kwargs},
        },
    }
    text: str = yaml.safe_dump([entry], sort_keys=False)
    return text


def _as_json(
    deployment: SimulatedDeployment, plan: CapacityPlan, costs: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "capacity_tokens_per_s": plan.capacity_tokens_per_s,
        "busy_replicas": plan.busy_replicas,
        "quiet_replicas": plan.quiet_replicas,
        "bulk_replicas": plan.bulk_replicas,
        "max_replicas": plan.max_replicas,
        "min_idle_replicas": plan.min_idle_replicas,
        "utilization": plan.utilization,
        "p50_s": plan.p50_s,
        "p99_s": plan.p99_s,
        "rise_p99_s": plan.rise_p99_s,
        "replica_hours_per_day": plan.replica_hours_per_day,
        "price": {name.replace(" ", "_"): cost for name, cost in costs.items()},
        "deployments": yaml.safe_load(_yaml(deployment, plan)),
    }


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _duration(text: str) -> float:
    return _quantity(text, r"\s*(ms|s)", _SECONDS, "a time such as 50ms or 0.5s")


def _rate(text: str) -> float:
    return _quantity(text, r"\s*/\s*(s|min|h|d)", _PER_SECOND, "a rate such as 300/s or 5000/min")


def _hours(text: str) -> float:
    hours = float(text)
    if not 0 <= hours <= 24:
        raise argparse.ArgumentTypeError(f"{text!r} isn't between 0 and 24")
    return hours


def _quantity(text: str, unit: str, factors: Mapping[str, float], kind: str) -> float:
    match = re.fullmatch(rf"\s*(\d+(?:\.\d+)?(?:e\d+)?){unit}\s*", text)
    value = float(match[1]) * factors[match[2]] if match else 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} isn't {kind}")
    return value
