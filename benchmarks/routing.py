"""Routing between replicas: the service's router against Ray's, on Ray.

    python -m benchmarks.routing --rounds 3
    python -m benchmarks.routing --replicas 6 --calls 4,16

The service runs a `hashing:` model whose batches take a fixed time, so that several replicas fit on
two cores. Each round runs every variant on a service of its own:

- mixed: queries at random times for 20 s, next to requests of 4 to 64 texts.
- burst: 400 queries at once, and how busy each replica is until the last reply.
- slow: like mixed, while one replica is stopped for half of the time.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from .autoscaling import running_service, service_config
from .loop import run_async
from .paths import RESULTS
from .record import append_record, make_record
from .service_processes import select
from .target import HttpTarget
from .trace_player import Playback, play

_MODEL = "words"
_SECONDS = 20.0
_BURST_TEXTS = 400
#: Of the capacity of all replicas: about 22 texts per second each.
_LOAD = 0.35
_TEXTS_PER_S = 22
#: Ray's agents collect metrics every 10 s.
_METRICS_AGE_S = 12.0
_BATCH_SECONDS = "ray_embedserve_batch_duration_seconds_sum"
_RAYS_ROUTER = {
    "request_router_class": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
}
_FILE = RESULTS / "routing.jsonl"


def _config(
    router: str, calls: int, replicas: int, scratch: Path, cache_timeout_s: str
) -> dict[str, Any]:
    config = service_config("separate", replicas, scratch)
    environment = config["controller_options"]["runtime_env"]["env_vars"]
    environment.pop("RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S", None)
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] == "Embedder":
            del deployment["autoscaling_config"]
            deployment["num_replicas"] = replicas
            if router == "ray":
                deployment["request_router_config"] = _RAYS_ROUTER
                environment["RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S"] = cache_timeout_s
        else:
            deployment.setdefault("user_config", {})["max_in_flight_calls"] = calls
    return config


async def _mixed(target: HttpTarget, replicas: int, seed: int) -> Playback:
    rng = np.random.default_rng(seed)
    rate = _LOAD * _TEXTS_PER_S * replicas
    arrival_s = np.sort(rng.uniform(0, _SECONDS, rng.poisson(rate * _SECONDS)))
    tokens = np.clip(rng.lognormal(np.log(50), 0.4, arrival_s.size), 10, 150).astype(int)
    bulk = asyncio.create_task(_requests(target, replicas, rng))
    playback = await play(arrival_s.tolist(), tokens.tolist(), target, seed=seed)
    await bulk
    return playback


async def _requests(target: HttpTarget, replicas: int, rng: np.random.Generator) -> None:
    """Sends requests of several texts, as many texts as there are queries."""
    async with asyncio.TaskGroup() as tasks:
        end_s = time.perf_counter() + _SECONDS
        while time.perf_counter() < end_s:
            texts = [
                " ".join(f"w{rng.integers(1_000_000)}" for _ in range(30))
                for _ in range(rng.choice([4, 8, 16, 64]))
            ]
            tasks.create_task(asyncio.to_thread(target.embed, texts))
            await asyncio.sleep(rng.exponential(len(texts) / (_LOAD * _TEXTS_PER_S * replicas)))


async def _slowed(target: HttpTarget, replicas: int, seed: int, process: psutil.Process) -> Any:
    run = asyncio.create_task(_mixed(target, replicas, seed))
    try:
        while not run.done():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                process.send_signal(number)
                await asyncio.sleep(0.25)
    finally:
        process.send_signal(signal.SIGCONT)
    return await run


async def _burst(target: HttpTarget, seed: int) -> Playback:
    return await play([0.0] * _BURST_TEXTS, [50] * _BURST_TEXTS, target, seed=seed)


def _batch_seconds(url: str) -> dict[str, float]:
    """Returns the seconds that each replica has computed for.

    Raises:
        RuntimeError: the service has no such metric.
    """
    time.sleep(_METRICS_AGE_S)
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        found = {
            sample.labels.get("replica", sample.labels.get("WorkerId", "")): sample.value
            for family in families
            for sample in family.samples
            if sample.name == _BATCH_SECONDS
        }
    if not found:
        raise RuntimeError(f"{url}/metrics has no {_BATCH_SECONDS}.")
    return found


def _embedder(processes: Iterable[psutil.Process]) -> psutil.Process:
    """Returns the process of one of the replicas."""
    return select(processes, "Embedder")[0]


def measure(router: str, calls: int, replicas: int, seed: int, cache_timeout_s: str) -> Any:
    """Runs all loads on a service of their own and returns the metrics."""
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as folder:
        config = _config(router, calls, replicas, Path(folder), cache_timeout_s)
        with running_service(config, Path(folder)) as service:
            target = HttpTarget(service.url, model=_MODEL)
            run_async(_burst(target, seed))  # the replicas learn what a batch costs
            mixed = run_async(_mixed(target, replicas, seed))
            before = _batch_seconds(service.url)
            burst = run_async(_burst(target, seed + 2000))
            after = _batch_seconds(service.url)
            # Last: for a while after it, that replica's measured speed is too low.
            slow = run_async(_slowed(target, replicas, seed + 1000, _embedder(service.processes())))
    burst_s = float(np.nanmax(burst.latency_s))
    busy = sorted((after[r] - before.get(r, 0.0)) / burst_s for r in after)
    return {
        **_percentiles("mixed", mixed),
        **_percentiles("slow", slow),
        "burst_s": round(burst_s, 3),
        "burst_busy": [round(share, 3) for share in busy],
        "failed": sum(len(p.failures) for p in (mixed, slow, burst)),
    }


def _percentiles(name: str, playback: Playback) -> Mapping[str, float]:
    return {
        f"{name}_p{q}_ms": round(float(np.nanpercentile(playback.latency_s, q)) * 1e3, 1)
        for q in (50, 95, 99)
    }


def main() -> int:
    """Alternates the variants and prints the median of each figure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--replicas", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--routers", default="ray,tokens", help="default: %(default)s")
    parser.add_argument("--calls", default="4", help="max_in_flight_calls, comma-separated")
    parser.add_argument(
        "--cache-timeout",
        default="0.2",
        help="RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S of Ray's router (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=_FILE, help="default: %(default)s")
    arguments = parser.parse_args()
    calls = [int(number) for number in arguments.calls.split(",")]
    variants = [(router, n) for router in arguments.routers.split(",") for n in calls]
    measured: dict[tuple[str, int], list[Any]] = {variant: [] for variant in variants}
    for round_ in range(arguments.rounds):
        for router, n in variants if round_ % 2 == 0 else reversed(variants):
            metrics = measure(router, n, arguments.replicas, round_, arguments.cache_timeout)
            measured[router, n].append(metrics)
            print(f"round {round_ + 1}, {router}, {n} calls: {metrics}", file=sys.stderr)
            parameters = {"experiment": "routing", "router": router, "calls": n}
            parameters |= {"replicas": arguments.replicas}
            append_record(arguments.output, make_record(parameters, metrics))
    names = [name for name in measured[variants[0]][0] if name != "burst_busy"]
    print("| | " + " | ".join(f"{router}, {n} calls" for router, n in variants) + " |")
    print("|---" * (len(variants) + 1) + "|")
    for name in names:
        row = (f"{median(m[name] for m in measured[variant]):g}" for variant in variants)
        print(f"| {name} | " + " | ".join(row) + " |")
    least = (median(min(m["burst_busy"]) for m in measured[variant]) for variant in variants)
    print("| least busy replica in the burst | " + " | ".join(f"{b:.0%}" for b in least) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
