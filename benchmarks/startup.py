"""What a replica of a model needs until its first vector, by step.

    python -m benchmarks.startup                     in fresh processes, without Ray
    python -m benchmarks.startup --ray               on Ray: a request wakes a deployment up
    python -m benchmarks.startup --against OTHER     alternated with the checkout in OTHER

Each figure is the median of the rounds, in seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from serve_app.command.ports import free_port, with_free_ports

_ROOT = Path(__file__).parents[1]
_CONFIG = _ROOT / "serve_config.yaml"
_TIMEOUT_S = 120.0
#: Runs in a fresh process; prints the seconds of each step as JSON.
_STEPS = """
import json, sys, time
import psutil
seconds, last_s = {"Python": time.time() - psutil.Process().create_time()}, time.perf_counter()

def step(name):
    global last_s
    now_s = time.perf_counter()
    seconds[name], last_s = now_s - last_s, now_s

import ray.serve
step("import Ray Serve")
import serve_app.deployments.embedder
step("import the replica's code")
import yaml
from serve_app.config import AppConfig
from serve_app.model_prep.engine_selection import check_space, load_engine, select_engines
(application,) = yaml.safe_load(open(sys.argv[1]))["applications"]
(selection,) = select_engines(AppConfig.parse(application["args"]))
import openvino
last_s = time.perf_counter()  # the application has done this
check_space(selection)
step("check the model's files")
engine = load_engine(selection, threads=2)
step("read and compile the model")
engine.run("embed", engine.tokenizer.encode(["The first text."]))
step("first vector")
print(json.dumps(seconds))
"""


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true", help="wake deployments up on Ray")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", type=Path, help="another checkout of the repository")
    arguments = parser.parse_args()
    checkouts = {"this": _ROOT} | ({"other": arguments.against} if arguments.against else {})
    measure = _wake_ups if arguments.ray else _processes
    rounds = {name: list[Mapping[str, float]]() for name in checkouts}
    for name, seconds in measure(checkouts, arguments.rounds):
        rounds[name].append(seconds)
        print(name, {step: round(s, 3) for step, s in seconds.items()}, file=sys.stderr)
    print(f"| step | {' | '.join(rounds)} |", f"|---|{'---|' * len(rounds)}", sep="\n")
    for step in next(iter(rounds.values()))[0]:
        cells = [f"{median(one.get(step, 0.0) for one in all_):.3f}" for all_ in rounds.values()]
        print(f"| {step} | {' | '.join(cells)} |")


def _processes(
    checkouts: Mapping[str, Path], rounds: int
) -> Iterator[tuple[str, Mapping[str, float]]]:
    for _ in range(rounds):
        for name, checkout in checkouts.items():
            output = subprocess.run(
                [sys.executable, "-c", _STEPS, str(_CONFIG)],
                cwd=checkout,
                env=_environment(checkout),
                capture_output=True,
                check=True,
            ).stdout
            seconds = json.loads(output.splitlines()[-1])
            yield name, seconds | {"all": sum(seconds.values())}


def _wake_ups(
    checkouts: Mapping[str, Path], rounds: int
) -> Iterator[tuple[str, Mapping[str, float]]]:
    """Runs the services one at a time, since each takes a part of the CPUs while idle."""
    per_service = 3
    for _ in range(-(-rounds // per_service)):
        for name, checkout in checkouts.items():
            with _service(checkout) as url:
                for i in range(per_service):
                    yield name, _wake_up(url, f"text {i} of {time.time()}")


def _wake_up(url: str, text: str) -> Mapping[str, float]:
    """Returns the seconds of each step from the request to the vector."""
    while not _get(f"{url}/health").get("asleep"):
        time.sleep(0.2)
    time.sleep(3)  # until the replica has stopped
    started_s = time.monotonic()
    body = json.dumps({"input": text}).encode()
    request = urllib.request.Request(
        f"{url}/v1/embeddings", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as reply:
        reply.read()
    all_s = time.monotonic() - started_s
    steps = _get(f"{url}/info")["startup"]
    return {**steps, "Ray: order and routing": all_s - sum(steps.values()), "all": all_s}


@contextmanager
def _service(checkout: Path) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = with_free_ports(yaml.safe_load(_CONFIG.read_text()), free_port(), Path(scratch))
        (application,) = config["applications"]
        application["args"]["cache"] = {"url": "none"}
        embedder = application["deployments"][-1]
        embedder["autoscaling_config"] |= {
            "min_replicas": 0,
            "upscale_delay_s": 0,
            "downscale_delay_s": 0,
        }
        embedder["autoscaling_config"]["policy"]["policy_kwargs"] = {"scale_to_zero_after_s": 1}
        file = Path(scratch) / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.command.main", "serve", str(file)],
            env=_environment(checkout) | {"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"},
            cwd=checkout,
            stdout=subprocess.DEVNULL,
        )
        try:
            deadline_s = time.monotonic() + _TIMEOUT_S
            while not _is_ready(url):
                assert time.monotonic() < deadline_s, "The service doesn't start."
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait()


def _environment(checkout: Path) -> dict[str, str]:
    path = os.pathsep.join([str(checkout), str(checkout / "clients/python")])
    return {**os.environ, "PYTHONPATH": path}


def _is_ready(url: str) -> bool:
    try:
        return bool(_get(f"{url}/health"))
    except OSError:
        return False


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:
        content: dict[str, Any] = json.load(reply)
        return content


if __name__ == "__main__":
    main()
