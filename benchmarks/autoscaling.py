"""A ramp, a spike and a steady load on Ray, recorded and simulated.

    python -m benchmarks.autoscaling ramp
    python -m benchmarks.autoscaling steady
    python -m benchmarks.autoscaling spike --topology colocated --max-replicas 6
    python -m benchmarks.autoscaling spike --again          simulate the last record again

The service runs a `hashing:` model whose batches take a fixed time, so that several replicas fit on
two cores. A client plays a trace. Then the simulator gets the same trace, the cost of a batch, the
settings, and what was measured of the machine: the start-up times, and the time of a lone text
outside its batch, which each waiting time contains.

Ray takes the report of a second at any part of it, which decides when it scales. The forecast is
the simulation whose first change of the replicas is closest to the measured one.
"""

import argparse
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import yaml

from serve_app.autoscale.policy import Bounds
from serve_app.command.ports import free_port, with_free_ports
from serve_app.command.ray_service import RayService
from serve_app.config import EmbedderSettings, PolicySettings
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.simulation.result import SimulationResult
from serve_app.simulation.scalers import TokenScaler
from serve_app.simulation.service import RouterName, SimulatedService
from serve_app.simulation.simulator import simulate
from serve_app.simulation.trace import Trace

from .forecast import Run, plot_runs
from .haproxy_servers import HAProxyServers
from .loop import run_async
from .paths import RESULTS, ROOT
from .record import Record, append_record, make_record
from .replica_history import ReplicaHistory, ReplicaWatcher
from .target import HttpTarget
from .trace_player import Playback, play

_CONFIGS = {"separate": "serve_config.yaml", "colocated": "configs/one-machine.yaml"}
_ENGINE_DEPLOYMENTS = {"separate": "Embedder", "colocated": "EmbedServer"}
_ROUTERS: dict[str, RouterName] = {"separate": "least_tokens", "colocated": "least_requests"}
_MODEL = "words"
_COST = BatchCost(fixed_s=0.015, token_s=0.0006)
_BATCH_TARGET_S = 0.1
_PERCENTILES = (50, 95, 99)
#: In this time the policy has seen the warm-up.
_REACTION_S = 5.0
_LONE_TEXTS = 60
_START_TIMEOUT_S, _SETTLE_TIMEOUT_S = 180.0, 90.0
#: Ray sends the report of a second before it takes the next one, so it is a second old.
_REPORT_DELAY_S = 1.0
#: Nobody knows beforehand at which part of a second reports come: each of these is simulated.
_PHASES_S = tuple(np.arange(0.1, 1.05, 0.1).tolist())
_FILE = RESULTS / "autoscaling.jsonl"

#: Texts per second by second. One replica computes about 22 per second.
_RATES: dict[str, tuple[list[float], list[float]]] = {
    "ramp": ([0, 20, 120, 160, 190, 220], [12, 12, 80, 80, 12, 12]),
    "spike": ([0, 40, 40, 80, 80, 150], [12, 12, 80, 80, 12, 12]),
    # Three minutes after the replicas for it have started. Its only noise is that of the arrivals.
    "steady": ([0, 240], [40, 40]),
}


def recorded_trace(name: str, seed: int = 1) -> Trace:
    """Returns Poisson arrivals of single texts of about 54 tokens."""
    rng = np.random.default_rng([seed, 0])
    times, rates = _RATES[name]
    counts = rng.poisson(np.interp(np.arange(times[-1]) + 0.5, times, rates))
    arrivals = np.repeat(np.arange(counts.size), counts) + rng.uniform(0, 1, counts.sum())
    tokens = np.clip(rng.lognormal(np.log(50), 0.4, arrivals.size), 10, 150)
    return Trace.from_arrays(name, np.sort(arrivals), tokens.astype(np.int64))


def service_config(topology: str, max_replicas: int, scratch: Path) -> dict[str, Any]:
    """Returns the configuration of the service, on free ports."""
    config: dict[str, Any] = yaml.safe_load((ROOT / _CONFIGS[topology]).read_text("utf-8"))
    config = with_free_ports(config, free_port(), scratch)
    application = config["applications"][0]
    application["args"] |= {
        "model": {
            "name": _MODEL,
            "source": "hashing:64",
            "batch_cost": {"fixed_s": _COST.fixed_s, "token_s": _COST.token_s},
        },
        "cache": {"data_dir": str(scratch / "cache")},
    }
    for deployment in application["deployments"]:
        settings = deployment.setdefault("user_config", {})
        if deployment["name"] in ("Ingress", "EmbedServer"):
            settings["max_concurrent_requests"] = 4096
        if deployment["name"] == _ENGINE_DEPLOYMENTS[topology]:
            settings["batch_target_s"] = _BATCH_TARGET_S
            deployment["ray_actor_options"] = {"num_cpus": 0.1}
            deployment["autoscaling_config"] |= {"min_replicas": 1, "max_replicas": max_replicas}
    return config


@contextmanager
def running_service(config: Mapping[str, Any], scratch: Path) -> Iterator[RayService]:
    """Runs the service on a Ray of its own until the end of the block."""
    # By default Ray's workers have a lower priority than the client.
    env = {"RAY_TMPDIR": str(scratch), "RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}
    service = RayService(config, env=env)
    service.start()
    try:
        for progress in service.wait_until_ready(timeout_s=_START_TIMEOUT_S):
            print(progress, file=sys.stderr)
        yield service
    finally:
        service.stop()


def record(name: str, topology: str, max_replicas: int) -> Record:
    """Plays a trace against a service and returns the record of it."""
    trace = recorded_trace(name)
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as folder:
        scratch = Path(folder)
        config = service_config(topology, max_replicas, scratch)
        with running_service(config, scratch) as service:
            target = HttpTarget(service.url, model=_MODEL)
            warm_up = run_async(_play(_warm_up(trace), target, seed=1))
            _wait_for_one_replica(service, _ENGINE_DEPLOYMENTS[topology])
            routed = HAProxyServers(scratch).count if topology == "colocated" else lambda: None
            deployment = _ENGINE_DEPLOYMENTS[topology]
            with ReplicaWatcher(service.application, deployment, routed) as history:
                playback = run_async(_play(trace, target))
            decision = _last_decision(service.url, playback.started_s)
    deployments = config["applications"][0]["deployments"]
    autoscaling = next(d["autoscaling_config"] for d in deployments if "autoscaling_config" in d)
    parameters = {
        "experiment": "autoscaling",
        "trace": name,
        "topology": topology,
        "max_replicas": max_replicas,
        "batch_cost": {"fixed_s": _COST.fixed_s, "token_s": _COST.token_s},
        "batch_target_s": _BATCH_TARGET_S,
        "lone_waiting_s": round(float(np.nanmedian(warm_up.waiting_s[:_LONE_TEXTS])), 4),
        "autoscaling": autoscaling,
        **decision,
    }
    return make_record(parameters, _metrics(trace, playback, history))


def _last_decision(url: str, started_s: float) -> dict[str, Any]:
    """Returns the load at the last decision, and the changes of the target since the start.

    A change has the seconds from the start, the replicas and the reason.
    """
    with urllib.request.urlopen(f"{url}/autoscaling", timeout=10) as response:
        (deployment,) = orjson.loads(response.read())["deployments"]
    changes = [
        (round(change["unix"] - started_s, 1), change["after"], change["reason"])
        for change in reversed(deployment["changes"])
        if change["unix"] >= started_s
    ]
    return {"load": deployment["load"], "changes": changes}


def _wait_for_one_replica(service: RayService, deployment: str) -> None:
    time.sleep(_REACTION_S)
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    while len(service.replica_states().get(deployment, [])) != 1:
        if time.monotonic() > deadline:
            raise TimeoutError("The warm-up has left more than one replica.")
        time.sleep(1)


async def _play(trace: Trace, target: HttpTarget, *, seed: int = 0) -> Playback:
    return await play(trace.arrival_s.tolist(), trace.tokens.tolist(), target, seed=seed)


def _warm_up(trace: Trace) -> Trace:
    """Returns few texts and then many at once, from which a replica learns what a batch costs."""
    n = _LONE_TEXTS
    first, many = trace.tokens[:n], trace.tokens[n : 2 * n]
    arrival_s = np.concatenate([np.arange(n) * 0.1, np.full(n, n * 0.1)])
    return Trace.from_arrays(trace.name, arrival_s, np.concatenate([first, many]))


def _metrics(trace: Trace, playback: Playback, history: ReplicaHistory) -> dict[str, Any]:
    seconds = int(trace.duration_s)
    running, target = history.by_second(playback.started_s, seconds)
    metrics: dict[str, Any] = {
        "failed": len(playback.failures),
        "failures": [[round(at_s, 2), reason] for at_s, reason in playback.failures],
        "client_lag_p99_ms": round(float(np.quantile(playback.lag_s, 0.99)) * 1e3, 2),
        "startup_s": [[round(s, 2) for s in times_s] for times_s in history.startup_s],
        "reload_s": [round(s, 2) for s in history.reload_s],
        "running": running.tolist(),
        "target": target.tolist(),
        "waiting_ms": _milliseconds(playback.waiting_s),
        "queue_ms": _milliseconds(playback.queue_s),
        "latency_ms": _milliseconds(playback.latency_s),
    }
    for q in _PERCENTILES:
        metrics[f"waiting_p{q}_s"] = round(float(np.nanpercentile(playback.waiting_s, q)), 4)
        metrics[f"latency_p{q}_s"] = round(float(np.nanpercentile(playback.latency_s, q)), 4)
    return metrics


def _milliseconds(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    return [None if np.isnan(s) else round(s * 1e3, 1) for s in seconds.tolist()]


def forecast(record: Mapping[str, Any]) -> list[SimulationResult]:
    """Returns simulations of what was recorded, the one with the closest first change first."""
    policy = record["autoscaling"].get("policy", {}).get("policy_kwargs") or {}
    times_s = [float(np.median(times_s)) for times_s in record["startup_s"] if times_s]
    service = SimulatedService(
        BatchCost(**record["batch_cost"]),
        EmbedderSettings(batch_target_s=record["batch_target_s"]),
        startup_s=times_s[0],
        startup_times_s=tuple(times_s),
        report_delay_s=_REPORT_DELAY_S,
        router=_ROUTERS[record["topology"]],
        bounds=Bounds(1, record["max_replicas"]),
    )
    if delays_s := record.get("reload_s"):  # records of the first days don't have it
        service = replace(service, reload_s=float(np.median(delays_s)))
    trace, settings = recorded_trace(record["trace"]), PolicySettings.parse(policy)
    results = [
        simulate(trace, replace(service, first_report_s=phase_s), TokenScaler(settings))
        for phase_s in _PHASES_S
    ]
    first_s = _first_change_s(record["changes"], trace)
    return sorted(results, key=lambda r: abs(_first_change_s(r.reasons, trace) - first_s))


def _first_change_s(changes: Sequence[Sequence[Any]], trace: Trace) -> float:
    """Returns when the target changed first; the end of the trace if it never did."""
    return float(changes[0][0]) if changes else trace.duration_s


def report(record: Mapping[str, Any], path: Path) -> None:
    """Prints both percentiles and draws the plot."""
    trace = recorded_trace(record["trace"])
    results = forecast(record)
    result = results[0]
    waiting_s = np.array([np.nan if ms is None else ms / 1e3 for ms in record["waiting_ms"]])
    assert result.waits_s is not None, "The exact simulation has them."
    measured = Run(waiting_s, np.array(record["running"]))
    simulated = Run(result.waits_s + record["lone_waiting_s"], result.timeline.running)
    print(f"{record['trace']}, {record['topology']}: waiting time in seconds")
    print("| | p50 | p95 | p99 |\n|---|---|---|---|")
    runs = [("measured", measured), ("simulated", simulated)]
    if "queue_ms" in record:  # without HTTP, calls between processes, and busy cores
        queue_s = np.array([np.nan if ms is None else ms / 1e3 for ms in record["queue_ms"]])
        runs.insert(1, ("measured, in the queue of the replica", Run(queue_s, measured.running)))
        runs.append(
            ("simulated, in the queue of the replica", Run(result.waits_s, simulated.running))
        )
    for name, run in runs:
        print(f"| {name} | " + " | ".join(f"{run.percentile(q):.3g}" for q in _PERCENTILES) + " |")
    ratio = simulated.percentile(95) / measured.percentile(95)
    p95_s = [r.waiting["interactive"].p95 + record["lone_waiting_s"] for r in results]
    print(f"p95 simulated / measured: {ratio:.2f}; failed: {record['failed']}")
    print(f"p95 simulated, by the time of the reports: {min(p95_s):.3g} to {max(p95_s):.3g} s")
    print("changes: " + ", ".join(f"{n} at {at_s} s" for at_s, n, _ in record["changes"]))
    first_s = [_first_change_s(c, trace) for c in (record["changes"], result.reasons)]
    print(f"first change: {first_s[0]:.1f} s; simulated: {first_s[1]:.1f} s")
    print(f"time of a lone text outside its batch: {record['lone_waiting_s']} s")
    print(f"start-up: {record['startup_s']} s; client's lag p99: {record['client_lag_p99_ms']} ms")
    print(f"until HAProxy sends to a new replica: {record.get('reload_s')} s")
    cost = BatchCost(**record["batch_cost"])
    capacity = 0.85 * cost.capacity(cost.tokens_within(record["batch_target_s"]))
    load = trace.tokens_per_second("interactive") / capacity
    title = f"{record['trace'].capitalize()}, {record['topology']} deployments"
    plot_runs(path, title, trace.arrival_s, load, measured, simulated)


def main() -> int:
    """Records a trace, or reads the last record of it, and compares it with the simulation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscaling")
    parser.add_argument("trace", choices=[*_RATES])
    parser.add_argument("--topology", choices=[*_CONFIGS], default="separate")
    parser.add_argument("--max-replicas", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="simulate the last record again")
    parser.add_argument("--output", type=Path, default=_FILE, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, help="default: docs/autoscaling-recorded-TRACE.png")
    arguments = parser.parse_args()
    if arguments.again:
        records = map(orjson.loads, arguments.output.read_text("utf-8").splitlines())
        key = (arguments.trace, arguments.topology)
        last = [r for r in records if (r["trace"], r["topology"]) == key][-1]
    else:
        last = record(arguments.trace, arguments.topology, arguments.max_replicas)
        append_record(arguments.output, last)
    default = ROOT / "docs" / f"autoscaling-recorded-{arguments.trace}.png"
    report(last, arguments.plot or default)
    return 0


if __name__ == "__main__":
    sys.exit(main())
