"""A real service for the tests in this folder: `serve run` on a Ray of its own, free ports."""

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

from serve_app.command.serve import ServiceProcess, free_port, with_free_ports

ROOT = Path(__file__).parents[2]

# Ray's processes give way to others by default: here to the tests that run meanwhile.
os.environ |= {"RAY_worker_niceness": "0"}

#: What the tests change in serve_config.yaml, so that they needn't wait for minutes.
USER_CONFIG = {
    "Ingress": {"health_max_age_s": 1, "health_timeout_s": 2},
    "Embedder": {"max_queued_tokens": 30_000},
}
DOWNSCALE_DELAY_S = 5
#: How often the service counts, and how often Ray tells of it.
METRICS_S = 3


class Service:
    """A running service, and what a test needs to know of it."""

    def __init__(self, launch: ServiceProcess, env: dict[str, str]) -> None:
        self.launch = launch
        self.url = launch.url
        self._env = env

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=150)

    def running(self, deployment: str) -> int:
        return self.launch.replica_states().get(deployment, []).count("RUNNING")

    def replica_pids(self, deployment: str) -> list[int]:
        title = f"ray::ServeReplica:embedserve:{deployment}"
        pids = []
        for process in self.launch.processes():
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    pids.append(process.pid)
        return pids

    def health(self) -> dict[str, Any]:
        reply = httpx2.get(f"{self.url}/health", timeout=30)
        health: dict[str, Any] = reply.json()
        return health

    async def metric(self, name: str, at_least: float) -> float:
        """A counter, all replicas together, once it has come so far."""
        found = 0.0

        def read() -> bool:
            nonlocal found
            text = httpx2.get(f"http://{self._metrics_address()}/metrics", timeout=10).text
            values = re.findall(rf"^ray_{name}_total{{.*}} ([\d.e+]+)$", text, re.MULTILINE)
            found = sum(map(float, values))
            return found >= at_least

        await self.until(read, timeout_s=60)
        await asyncio.sleep(METRICS_S)  # until all that has happened is told
        read()
        return found

    def _metrics_address(self) -> str:
        file = Path(self._env["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
        address: str = json.loads(file.read_text("utf-8"))[0]["targets"][0]
        return address

    def cache_servers(self) -> list[psutil.Process]:
        """The service's own Valkey servers."""
        return [p for p in self.launch.processes() if p.name() == "valkey-server"]

    def drive(self, code: str) -> str:
        """Runs code as another Ray driver would, and returns what it prints."""
        return self.command("-c", code)

    def _gcs_address(self) -> str:
        for process in self.launch.processes():
            with suppress(psutil.NoSuchProcess):
                if found := re.search(r"--gcs-address=(\S+)", " ".join(process.cmdline())):
                    return found.group(1)
        raise AssertionError("The service has no Ray.")

    def command(self, *words: str) -> str:
        """Runs Python with these arguments, on the service's Ray; what it prints."""
        done = subprocess.run(
            [sys.executable, *words],
            # `auto` may find another Ray on this machine; and where it isn't asked to look for an
            # address, Ray needs to be told to read its token.
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
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def until(self, true: Callable[[], bool], timeout_s: float = 120) -> None:
        end = time.monotonic() + timeout_s
        while not await asyncio.to_thread(true):
            assert time.monotonic() < end, f"Not within {timeout_s} s."
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
                deployment["ray_actor_options"] = {"num_cpus": 1}  # so that two fit anywhere
            if "autoscaling_config" in deployment:
                deployment["autoscaling_config"]["downscale_delay_s"] = DOWNSCALE_DELAY_S
        env = {"RAY_TMPDIR": scratch, "RAY_ADDRESS": "local"}
        env["RAY_metrics_report_interval_ms"] = "1000"
        launch = ServiceProcess(config, env=env)
        launch.start()
        try:
            for doing in launch.wait_until_ready(timeout_s=180):
                print(doing)
            yield Service(launch, env)
        finally:
            launch.stop()


class Load:
    """Clients that ask one request after the other, each text a new one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.answered = 0
        self.failures: list[str] = []

    @asynccontextmanager
    async def of(self, clients: int, texts: int, pause_s: float = 0) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._one(i, texts, pause_s)) for i in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def more(self, n: int, timeout_s: float = 60) -> None:
        """Waits for n more answers."""
        goal = self.answered + n
        async with asyncio.timeout(timeout_s):
            while self.answered < goal:
                await asyncio.sleep(0.05)

    async def _one(self, number: int, texts: int, pause_s: float) -> None:
        async with AsyncOpenAI(
            base_url=f"{self._service.url}/v1", api_key="none", max_retries=0, timeout=150
        ) as client:
            turn = 0
            while True:
                turn += 1
                batch = [f"{time.time_ns()} client {number} text {i}" for i in range(texts)]
                try:
                    reply = await client.embeddings.create(model="all-MiniLM-L6-v2", input=batch)
                    assert len(reply.data) == texts
                    self.answered += 1
                except Exception as error:
                    self.failures.append(repr(error))
                await asyncio.sleep(pause_s)


@pytest.fixture
def load(service: Service) -> Load:
    return Load(service)
