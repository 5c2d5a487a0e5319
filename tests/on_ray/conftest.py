"""A running service for this directory's tests: `serve run` on its own Ray, with free ports."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from openai import AsyncOpenAI, OpenAI

from serve_app.command.ports import free_port, with_free_ports
from serve_app.command.ray_service import RayService

ROOT = Path(__file__).parents[2]

# By default Ray raises the niceness of its workers, which would yield to the test processes.
os.environ |= {"RAY_worker_niceness": "0"}

#: Overrides of serve_config.yaml that shorten waits.
USER_CONFIG = {
    "Ingress": {"health_max_age_s": 1, "health_timeout_s": 2},
    "Embedder": {"max_queued_tokens": 30_000},
}
DOWNSCALE_DELAY_S = 5
#: Time until Ray reports a metric: the service's export interval plus Ray's report interval.
METRICS_DELAY_S = 3


class Service:
    """A running service and what tests observe of it."""

    def __init__(self, process: RayService, env: dict[str, str]) -> None:
        self.process = process
        self.url = process.url
        self._env = env

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=150)

    def running_replicas(self, deployment: str) -> int:
        return self.process.replica_states().get(deployment, []).count("RUNNING")

    def replica_pids(self, deployment: str) -> list[int]:
        title = f"ray::ServeReplica:embedserve:{deployment}"
        pids = []
        for process in self.process.processes():
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    pids.append(process.pid)
        return pids

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = httpx2.get(f"{self.url}/health", timeout=30).json()
        return health

    async def counter(self, name: str, at_least: float) -> float:
        """Waits until a counter, summed over replicas, is `at_least`; returns its settled value."""
        total = 0.0

        def read() -> bool:
            nonlocal total
            text = httpx2.get(f"http://{self._metrics_address()}/metrics", timeout=10).text
            values = re.findall(rf"^ray_{name}_total{{.*}} ([\d.e+]+)$", text, re.MULTILINE)
            total = sum(map(float, values))
            return total >= at_least

        await self.wait_until(read, timeout_s=60)
        await asyncio.sleep(METRICS_DELAY_S)  # until all counts are exported
        read()
        return total

    def _metrics_address(self) -> str:
        file = Path(self._env["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
        address: str = json.loads(file.read_text("utf-8"))[0]["targets"][0]
        return address

    def cache_servers(self) -> list[psutil.Process]:
        """Returns the service's embedded Valkey servers."""
        return [p for p in self.process.processes() if p.name() == "valkey-server"]

    def run_driver(self, code: str) -> str:
        """Runs code as a Ray driver on the service's cluster; returns its output."""
        return self.run_python("-c", code)

    def _gcs_address(self) -> str:
        for process in self.process.processes():
            with suppress(psutil.NoSuchProcess):
                if match := re.search(r"--gcs-address=(\S+)", " ".join(process.cmdline())):
                    return match.group(1)
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


@pytest.fixture(scope="package")
def service() -> Iterator[Service]:
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as scratch:
        config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
        config = with_free_ports(config, free_port(), Path(scratch))
        args = config["applications"][0].setdefault("args", {})
        args["cache"] = {"data_dir": f"{scratch}/cache"}
        args["cors_origins"] = ["*"]
        for deployment in config["applications"][0]["deployments"]:
            deployment.setdefault("user_config", {}).update(USER_CONFIG.get(deployment["name"], {}))
            if deployment["name"] == "Embedder":
                deployment["ray_actor_options"] = {
                    "num_cpus": 1
                }  # so that two replicas fit onto any machine
            if "autoscaling_config" in deployment:
                deployment["autoscaling_config"]["downscale_delay_s"] = DOWNSCALE_DELAY_S
        env = {"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"}
        env["RAY_metrics_report_interval_ms"] = "1000"
        process = RayService(config, env=env)
        process.start()
        try:
            for progress in process.wait_until_ready(timeout_s=180):
                print(progress)
            yield Service(process, env)
        finally:
            process.stop()


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
