"""A service on several machines: a Ray cluster, its Valkey server, and configs/cluster.yaml."""

import http.client
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from serve_app.valkey.embedded import find_binary

from .machines import GATEWAY, MACHINE_DIR, Machine
from .node_load import MODEL

_ROOT = Path(__file__).parents[1]
_RAY = (
    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
    *("--disable-usage-stats", "--include-log-monitor=false"),
)
_EMBEDSERVE = (sys.executable, "-m", "serve_app.command.main")
_GCS_PORT = 6379
_VALKEY_PORT = 6380
_OBJECT_STORE_BYTES = 100 * 1024 * 1024
#: An Embedder takes two, an Ingress and a CacheLookup a tenth each.
_CPUS = 3
_TIMEOUT_S = 300.0
_POLL_S = 0.25
_DEPLOYMENTS = ("Ingress", "CacheLookup", "Embedder")
#: The beginning of the titles of replicas' processes.
_REPLICA = "ray::ServeReplica:embedserve:"
_PASSWORD_ENV = "EMBEDSERVE_CACHE_PASSWORD"


class NodeCluster:
    """A head and two workers; more workers can join. A context manager, which stops all."""

    port = 8000

    def __init__(self, logs: Path, *, batch_s: float = 0.01) -> None:
        """A cluster that isn't started yet.

        Args:
            logs: directory for the output of the machines.
            batch_s: how long each batch of the model takes.
        """
        self._logs = logs
        self._batch_s = batch_s
        self._password = secrets.token_hex(16)
        self._env = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            "RAY_prestart_worker_first_driver": "0",  # processes that nobody uses
            _PASSWORD_ENV: self._password,
        }
        self._valkey: subprocess.Popen[bytes] | None = None
        self.head = Machine("head", 1, self._env | {"RAY_REDIS_ADDRESS": _valkey_address()})
        self.workers: list[Machine] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for machine in (*self.workers, self.head):
            machine.kill()
        if self._valkey is not None:
            self._valkey.kill()
            self._valkey.wait()

    def start(self) -> None:
        """Starts the machines and deploys the service.

        Raises:
            RuntimeError: a command failed.
            TimeoutError: the service isn't ready in time.
        """
        self._start_valkey()
        self._start_head()
        self.wait_until(lambda: self._has_started(self.head), "Ray's head")
        for _ in range(2):  # one after another: Ray gives up on a start that takes half a minute
            self.add_worker()
            self.wait_until(lambda: self._has_started(self.workers[-1]), "a worker")
        print(self._deploy(), file=sys.stderr)
        self.wait_until(lambda: self.is_served(2), "the service")

    def copy_logs(self) -> None:
        """Copies Ray's logs of the machines that run."""
        for machine in (self.head, *self.workers):
            if machine.is_running and "Ray runtime started" in self._log(machine).read_text():
                machine.copy("ray/session_latest/logs", self._logs / machine.name)

    def add_worker(self) -> None:
        """Starts another worker machine."""
        number = len(self.workers) + 2
        worker = Machine(f"worker{number - 1}", number, self._env)
        address = f"--address={self.head.address}:{_GCS_PORT}"
        worker.start(
            [
                *(*_RAY, address, f"--node-ip-address={worker.address}", f"--num-cpus={_CPUS}"),
                f"--object-store-memory={_OBJECT_STORE_BYTES}",
            ],
            self._log(worker),
        )
        self.workers.append(worker)

    def restart_head(self) -> None:
        """Kills all processes of the head and starts it again."""
        self.head.kill()
        self._start_head()

    def is_head_back(self) -> bool:
        """Whether the head runs Serve's controller again, and its HAProxy leads to the service."""
        titles = _titles(self.head)
        return any(t.startswith("ray::ServeController") for t in titles) and self._answers(
            self.head
        )

    def is_served(self, workers: int) -> bool:
        """Whether so many workers run, each with a replica of each deployment and with HAProxy."""
        running = [machine for machine in self.workers if machine.is_running]
        return len(running) == workers and all(map(self._has_replicas, running))

    def wait_until(self, condition: Callable[[], bool], name: str) -> None:
        """Waits until a condition is met.

        Raises:
            TimeoutError: it isn't in time.
        """
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{name}: not after {_TIMEOUT_S:.0f} s.")
            time.sleep(_POLL_S)

    def _start_valkey(self) -> None:
        # The configuration is read from standard input, so that no file or title has the password.
        self._valkey = subprocess.Popen(
            [str(find_binary()), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        settings = f"bind {GATEWAY}\nport {_VALKEY_PORT}\nrequirepass {self._password}\nsave ''\n"
        assert self._valkey.stdin is not None
        self._valkey.stdin.write(settings.encode())
        self._valkey.stdin.close()

    def _start_head(self) -> None:
        self.head.start(
            [
                *(*_RAY, "--head", f"--node-ip-address={self.head.address}"),
                *(f"--port={_GCS_PORT}", "--num-cpus=0", f"--redis-password={self._password}"),
                *(f"--object-store-memory={_OBJECT_STORE_BYTES}", "--include-dashboard=false"),
            ],
            self._log(self.head),
        )

    def _has_replicas(self, machine: Machine) -> bool:
        titles = _titles(machine)
        return self._answers(machine) and all(
            any(title.startswith(_REPLICA + name) for title in titles) for name in _DEPLOYMENTS
        )

    def _has_started(self, machine: Machine) -> bool:
        if not machine.is_running:
            raise RuntimeError(
                f"Ray has ended on {machine.name}:\n{self._log(machine).read_text()}"
            )
        return "Ray runtime started" in self._log(machine).read_text()

    def _log(self, machine: Machine) -> Path:
        return self._logs / f"{machine.name}.log"

    def _deploy(self) -> str:
        file = self._logs / "cluster.yaml"
        file.write_text(yaml.safe_dump(self._config()), encoding="utf-8")
        address = f"--address={self.head.address}:{_GCS_PORT}"
        return self.head.call([*_EMBEDSERVE, "deploy", str(file), address], timeout_s=_TIMEOUT_S)

    def _config(self) -> dict[str, Any]:
        """Returns configs/cluster.yaml with a model that takes no CPU, and files that vanish."""
        config: dict[str, Any] = yaml.safe_load((_ROOT / "configs/cluster.yaml").read_text("utf-8"))
        env = config["controller_options"]["runtime_env"]["env_vars"]
        env |= {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{MACHINE_DIR}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{MACHINE_DIR}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(MACHINE_DIR),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{MACHINE_DIR}/server-state",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }
        (application,) = config["applications"]
        model = MODEL | {"batch_cost": {"fixed_s": self._batch_s}}
        application["args"]["model"] = model
        application["args"]["cache"]["url"] = f"redis://{_valkey_address()}/1"
        ingress, *_ = application["deployments"]
        ingress["user_config"]["access"] = {"allow_unauthenticated": True}
        return config

    def _answers(self, machine: Machine) -> bool:
        connection = http.client.HTTPConnection(machine.address, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _valkey_address() -> str:
    return f"{GATEWAY}:{_VALKEY_PORT}"


def _titles(machine: Machine) -> list[str]:
    titles = []
    for process in machine.processes():
        with suppress(psutil.Error):
            titles.append(" ".join(process.cmdline()))
    return titles
