"""A running service for this directory's tests, on free ports: on its own Ray, or standalone.

A test runs on `separate` deployments unless a mark names others: `ON_RAY` adds the topology
`colocated`, `EVERYWHERE` adds `embedserve serve --standalone` as well.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from serve_app.command.ports import free_port, with_free_ports
from serve_app.command.process_tree import command_line, process_name
from serve_app.command.ray_service import RayService
from serve_app.command.service_process import ServiceProcess

ROOT = Path(__file__).parents[2]
EMBEDSERVE = (sys.executable, "-m", "serve_app.command.main")

# By default Ray raises the niceness of its workers, which would yield to the test processes.
os.environ |= {"RAY_worker_niceness": "0"}

SEPARATE, COLOCATED, STANDALONE = "separate", "colocated", "standalone"
CONFIG_FILES = {
    SEPARATE: "serve_config.yaml",
    COLOCATED: "configs/one-machine.yaml",
    STANDALONE: "configs/one-machine.yaml",
}
ON_RAY = pytest.mark.parametrize("service", [SEPARATE, COLOCATED], indirect=True)
EVERYWHERE = pytest.mark.parametrize("service", [SEPARATE, COLOCATED, STANDALONE], indirect=True)

#: Overrides of the configuration files that shorten waits.
_REQUEST_SETTINGS = {"health_max_age_s": 1, "health_timeout_s": 2}
_ENGINE_SETTINGS = {"max_queued_tokens": 30_000}
USER_CONFIG = {
    "Ingress": _REQUEST_SETTINGS,
    "Embedder": _ENGINE_SETTINGS,
    "EmbedServer": {**_REQUEST_SETTINGS, **_ENGINE_SETTINGS},
}
DOWNSCALE_DELAY_S = 5
#: Time until Ray reports a metric: the service's export interval plus Ray's report interval.
METRICS_DELAY_S = 3


class Service:
    """A running service and what tests observe of it."""

    def __init__(self, process: ServiceProcess, kind: str, env: dict[str, str]) -> None:
        self.url = process.url
        self.kind = kind
        separate = kind == SEPARATE
        #: The deployments that take requests, share the cache and compute.
        self.http_deployment = "Ingress" if separate else "EmbedServer"
        self.cache_deployment = "CacheLookup" if separate else "EmbedServer"
        self.engine_deployment = "Embedder" if separate else "EmbedServer"
        self._process = process
        self._env = env

    @property
    def process(self) -> RayService:
        """The service's Ray."""
        assert isinstance(self._process, RayService), "A standalone service has no Ray."
        return self._process

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=150)

    def running_replicas(self, deployment: str) -> int:
        return self.process.replica_states().get(deployment, []).count("RUNNING")

    def wait_for_one_replica(self) -> None:
        """Waits until no replica is left that Ray started for the load of an earlier test."""
        deadline = time.monotonic() + 120
        while self.kind != STANDALONE:
            states = self.process.replica_states().get(self.engine_deployment)
            if states == ["RUNNING"]:
                return
            assert time.monotonic() < deadline, states
            time.sleep(0.5)

    def replica_pids(self, deployment: str) -> list[int]:
        title = f"ray::ServeReplica:embedserve:{deployment}"
        return [
            process.pid
            for process in self.process.processes()
            if "".join(command_line(process)[:1]).startswith(title)
        ]

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = httpx2.get(f"{self.url}/health", timeout=30).json()
        return health

    async def counter(self, name: str, at_least: float) -> float:
        """Waits until a metric, summed over replicas, is `at_least`; returns its settled value."""
        await self.wait_until(lambda: sum(self.counts(name).values()) >= at_least, timeout_s=60)
        if self.kind != STANDALONE:
            await asyncio.sleep(METRICS_DELAY_S)  # until all counts are exported
        return sum(self.counts(name).values())

    def counts(self, name: str) -> Counter[str]:
        """Returns a metric of each replica, by the replica's id."""
        url = self.url if self.kind == STANDALONE else f"http://{self._metrics_address()}"
        text = httpx2.get(f"{url}/metrics", timeout=10).text
        samples = re.findall(
            rf"^ray_{name}(?:_total)?(?:{{(.*)}})? ([\d.e+]+)$", text, re.MULTILINE
        )
        counts = Counter[str]()
        for labels, value in samples:
            replica = re.search(r'replica="([^"]*)"', labels)
            counts[replica[1] if replica else ""] += float(value)  # type: ignore[assignment]
        return counts

    def _metrics_address(self) -> str:
        file = Path(self._env["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
        address: str = json.loads(file.read_text("utf-8"))[0]["targets"][0]
        return address

    def cache_servers(self) -> list[psutil.Process]:
        """Returns the service's embedded Valkey servers."""
        return [p for p in self._process.processes() if process_name(p) == "valkey-server"]

    def nodes_of(self, deployment: str) -> set[str]:
        """Returns the ids of the nodes on which a deployment has replicas."""
        replicas = self.process.application()["deployments"][deployment]["replicas"]
        return {replica["node_id"] for replica in replicas if replica["state"] == "RUNNING"}

    def start_node(self) -> "subprocess.Popen[str]":
        """Starts a node without CPUs, which joins the service's Ray; waits until it has."""
        arguments = {
            "address": self._gcs_address(),
            "num-cpus": 0,
            "object-store-memory": 100 << 20,
            "include-log-monitor": "false",
            "dashboard-agent-listen-port": free_port(),
        }
        options = [f"--{name}={value}" for name, value in arguments.items()]
        drain = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
        for _ in range(4):  # Ray gives up on a start that takes half a minute
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options],
                env={**os.environ, **self._env, **drain, "RAY_AUTH_MODE": "token"},
                stdout=subprocess.PIPE,
                text=True,
            )
            assert node.stdout is not None
            if any("Ray runtime started" in line for line in node.stdout):
                return node
            node.communicate()
        raise AssertionError("No node starts.")

    def run_driver(self, code: str) -> str:
        """Runs code as a Ray driver on the service's cluster; returns its output."""
        return self.run_python("-c", code)

    def _gcs_address(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in self.process.processes():
                if match := re.search(r"--gcs-address=(\S+)", " ".join(command_line(process))):
                    return match.group(1)
            time.sleep(0.5)  # Ray is starting
        raise AssertionError("The service has no Ray process.")

    def run_python(self, *args: str) -> str:
        """Runs Python with these arguments on the service's Ray; returns its output."""
        completed = subprocess.run(
            [sys.executable, *args],
            # `auto` may find another Ray on this machine. With an explicit address, Ray reads its
            # token only in token mode.
            env={
                **os.environ,
                **self._env,
                "RAY_ADDRESS": self._gcs_address(),
                "RAY_AUTH_MODE": "token",
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, f"Not within {timeout_s} s."
            await asyncio.sleep(0.5)


def service_config(kind: str, scratch: str) -> dict[str, Any]:
    """Returns the configuration of a service of this kind, on free ports and with short waits."""
    config = yaml.safe_load((ROOT / CONFIG_FILES[kind]).read_text("utf-8"))
    config = with_free_ports(config, free_port(), Path(scratch))
    config["applications"][0].setdefault("args", {})["cache"] = {"data_dir": f"{scratch}/cache"}
    for deployment in config["applications"][0]["deployments"]:
        deployment.setdefault("user_config", {}).update(USER_CONFIG.get(deployment["name"], {}))
        if deployment["name"] in ("Embedder", "EmbedServer"):
            # so that two replicas fit onto any machine
            deployment["ray_actor_options"] = {"num_cpus": 1}
        if "autoscaling_config" in deployment:
            policy = deployment["autoscaling_config"]["policy"]
            policy.setdefault("policy_kwargs", {})["downscale_delay_s"] = DOWNSCALE_DELAY_S
    return config


@contextmanager
def running_service(
    kind: str, config: dict[str, Any], scratch: str, *, more_nodes: int = 0
) -> Iterator[Service]:
    """Runs a service until the end of the block, on a Ray with so many nodes more."""
    env = {"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local", "RAY_metrics_report_interval_ms": "1000"}
    process: ServiceProcess
    if kind == STANDALONE:
        file = Path(scratch) / "standalone.yaml"
        file.write_text(yaml.safe_dump(config), "utf-8")
        url = f"http://127.0.0.1:{config['http_options']['port']}"
        process = ServiceProcess([*EMBEDSERVE, "serve", "--standalone", str(file)], url)
    else:
        process = RayService(config, env=env)
    process.start()
    service = Service(process, kind, env)
    nodes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(more_nodes):
            nodes.append(service.start_node())
        for progress in process.wait_until_ready(timeout_s=180):
            print(progress)
        yield service
    finally:
        process.stop()
        for node in nodes:
            with node:  # waits, and closes the pipe
                node.terminate()


@pytest.fixture(scope="package", params=[SEPARATE])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = service_config(request.param, scratch)
        config["applications"][0]["args"]["cors_origins"] = ["*"]
        with running_service(request.param, config, scratch) as service:
            yield service


class LoadGenerator:
    """Closed-loop clients: each sends one request after another, always with new texts."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.succeeded = 0
        self.failures: list[str] = []

    @asynccontextmanager
    async def run(self, clients: int, texts: int, pause_s: float = 0) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._send_requests(i, texts, pause_s)) for i in range(clients)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_for(self, n: int, timeout_s: float = 60) -> None:
        """Waits for `n` more successful replies."""
        target = self.succeeded + n
        async with asyncio.timeout(timeout_s):
            while self.succeeded < target:
                await asyncio.sleep(0.05)

    async def _send_requests(self, client_id: int, texts: int, pause_s: float) -> None:
        async with AsyncOpenAI(
            base_url=f"{self._service.url}/v1", api_key="none", max_retries=0, timeout=150
        ) as client:
            while True:
                batch = [f"{time.time_ns()} client {client_id} text {i}" for i in range(texts)]
                try:
                    reply = await client.embeddings.create(model="all-MiniLM-L6-v2", input=batch)
                    assert len(reply.data) == texts
                    self.succeeded += 1
                except Exception as error:
                    self.failures.append(repr(error))
                await asyncio.sleep(pause_s)


@pytest.fixture
def load(service: Service) -> LoadGenerator:
    return LoadGenerator(service)
