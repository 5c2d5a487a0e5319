"""The service that faults are injected into, with ports, keys, a cache and a disk of its own."""

import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import redis
import yaml
from platformdirs import user_cache_path

from serve_app.access.keys import digest, generate_key
from serve_app.command.ports import free_port, with_free_ports
from serve_app.command.process_tree import is_running, send_signal
from serve_app.command.ray_service import RayService
from serve_app.command.service_process import ServiceProcess

from ..paths import ROOT
from ..service_processes import select
from .disk import Disk

#: The topologies, and the configuration of each.
TOPOLOGIES = {"separate": "serve_config.yaml", "colocated": "configs/one-machine.yaml"}
_START_TIMEOUT_S = 240.0
_POLL_S = 0.25
_VALKEY_TIMEOUT_S = 5.0
#: Room for about 75 vectors, so that most texts are read from Valkey.
_L1_MAX_BYTES = 150_000
_GCS_ADDRESS = re.compile(r"--gcs-address=(\S+)")

ConfigChange = Callable[[dict[str, Any]], dict[str, Any]]


class FaultyService:
    """A running service, its processes, its files and its Valkey server."""

    def __init__(self, topology: str, change: ConfigChange = lambda config: config) -> None:
        """A service that isn't started.

        Args:
            topology: one of `TOPOLOGIES`.
            change: returns its configuration, changed.
        """
        self.topology = topology
        # Short: the paths of Ray's sockets have at most 107 bytes.
        self._scratch = tempfile.TemporaryDirectory(prefix="es-", dir="/tmp")
        self.folder = Path(self._scratch.name)
        self.api_key = generate_key()
        self.keys_file = self.folder / "keys.yaml"
        self.disk = Disk(self.folder / "disk")
        self.config = self._make_config(change)
        self._process = self._make_process()

    @property
    def ray_env(self) -> dict[str, str]:
        """Environment variables that keep the service's Ray apart from others."""
        return {
            "RAY_TMPDIR": self._scratch.name,
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "token",
            "XDG_CACHE_HOME": str(self.disk.folder),
        }

    @property
    def prepared_models(self) -> Path:
        """The prepared models, a copy of those of the user."""
        return self.disk.folder / "embedserve" / "prepared"

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self._process.url

    @property
    def dashboard_url(self) -> str:
        """Where Ray's dashboard answers."""
        assert self._ray.dashboard_url, "The service is started. This is a bug."
        return self._ray.dashboard_url

    def gcs_address(self) -> str:
        """Returns the address of the service's Ray cluster, `host:port`.

        Raises:
            RuntimeError: the service has no Ray process.
        """
        for process in self._process.processes():
            with suppress(psutil.Error):
                if match := _GCS_ADDRESS.search(" ".join(process.cmdline())):
                    return match[1]
        raise RuntimeError("The service has no Ray process.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        # A stopped process doesn't end on SIGINT.
        send_signal(self._process.processes(), signal.SIGCONT)
        self._process.stop()
        self.disk.remove()
        self._scratch.cleanup()

    def start(self) -> Iterator[str]:
        """Starts the service and yields the progress until it is healthy.

        Raises:
            StartupError: it doesn't start.
        """
        yield "copying the prepared models"
        self.disk.create()
        prepared = user_cache_path("embedserve") / "prepared"
        if prepared.is_dir():
            shutil.copytree(prepared, self.prepared_models)
        self._process.start()
        yield from self._process.wait_until_ready(_START_TIMEOUT_S)

    def address(self) -> tuple[str, int]:
        """Returns host and port of HTTP."""
        return "127.0.0.1", int(self.config["http_options"]["port"])

    def processes(self, name: str) -> list[psutil.Process]:
        """Returns the running processes of a name of `service_processes`."""
        return select(self.all_processes(), name)

    def all_processes(self) -> list[psutil.Process]:
        """Returns all running processes of the service, its Valkey server included."""
        return [process for process in self._process.processes() if is_running(process)]

    def is_healthy(self) -> bool:
        """Whether `GET /health` is answered with 200."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (OSError, ValueError):
            return False

    def wait_until_healthy(self, timeout_s: float) -> bool:
        """Waits until the service is healthy and Ray runs what it should; returns whether it is."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            states = [s for states in self._ray.replica_states().values() for s in states]
            if states and all(s == "RUNNING" for s in states) and self.is_healthy():
                return True
            time.sleep(_POLL_S)
        return False

    def valkey(self, password: str | None = None) -> redis.Redis:
        """Returns a client of the embedded Valkey server.

        Args:
            password: one that a fault has set; None: the server has none.

        Raises:
            FileNotFoundError: there is no server.
        """
        for path in sorted(self.disk.folder.rglob("*.sock")):
            if path.is_socket() and _listens(path):
                return redis.Redis(
                    unix_socket_path=str(path),
                    socket_timeout=_VALKEY_TIMEOUT_S,
                    password=password,
                )
        raise FileNotFoundError("The service has no Valkey server.")

    def write_keys(self, content: str | None = None) -> None:
        """Replaces the file of API keys; None: by the one with the key of the load."""
        keys = {"keys": [{"name": "load", "sha256": digest(self.api_key)}]}
        text = yaml.safe_dump(keys) if content is None else content
        self.keys_file.write_text(text, encoding="utf-8")

    def write_config(self, name: str, config: Mapping[str, Any]) -> Path:
        """Writes a configuration into a file of the scratch directory."""
        file = self.folder / name
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        return file

    @property
    def _ray(self) -> RayService:
        assert isinstance(self._process, RayService), "The service runs on Ray. This is a bug."
        return self._process

    def _make_process(self) -> ServiceProcess:
        return RayService(self.config, env=self.ray_env)

    def _make_config(self, change: ConfigChange) -> dict[str, Any]:
        self.write_keys()
        content = (ROOT / TOPOLOGIES[self.topology]).read_text("utf-8")
        config = with_free_ports(yaml.safe_load(content), free_port(), self.folder)
        (application,) = config["applications"]
        application.setdefault("args", {})["cache"] = {"data_dir": str(self.disk.folder / "cache")}
        http, *_ = application["deployments"]
        http["user_config"]["access"] = {"keys_file": str(self.keys_file)}
        http["user_config"]["l1_max_bytes"] = _L1_MAX_BYTES
        return change(config)


def serve_command(*arguments: str) -> list[str]:
    """Returns Ray's command `serve` with arguments."""
    return [sys.executable, "-m", "ray.serve.scripts", *arguments]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
