"""Runs `serve run` for a person: says what is going on, when it is ready, and cleans up.

Ray's own command starts everything and then is silent, in success as in failure. This puts
a parent process around it that watches the service come up, passes on what went wrong, and
makes sure that nothing stays behind when it ends.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.valkey.parent_death import die_with_parent
from serve_app.valkey.supervisor import SHUTDOWN_TIMEOUT_S, parse_owner_pid

_POLL_S = 0.3
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
#: What HAProxy and the proxy behind it open beside the HTTP port, where nothing else is said.
_HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
_STOP_S = 60.0
_LINGER_S = 3.0
_DASHBOARD = re.compile(r"View the dashboard at \S*?(http://[\d.:]+)")
_RAISED = re.compile(r"^(?:\w+\.)*[A-Z]\w+: ", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class StartupError(Exception):
    """The service did not come up; the message says why."""


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_in_use(config: Mapping[str, Any]) -> int | None:
    """A port that the service would listen on and something else does; None: all are free."""
    http = config.get("http_options", {})
    ports = [http.get("port", 8000)]
    env = _switches(config)
    if env.get(_HAPROXY) == "1":
        ports += [int(env.get(name, default)) for name, default in _HAPROXY_PORTS.items()]
    return next((p for p in ports if not _is_free(http.get("host", "0.0.0.0"), p)), None)


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def with_free_ports(config: Mapping[str, Any], port: int, scratch: Path) -> dict[str, Any]:
    """The same configuration for one more service on this machine.

    Moves the HTTP port, and out of each other's way what HAProxy opens beside it: its other
    ports, its admin socket and its files, which go into `scratch`.
    """
    moved: dict[str, Any] = json.loads(json.dumps(config))
    moved.setdefault("http_options", {})["port"] = port
    env = _switches(moved)
    if env.get(_HAPROXY) == "1":
        env |= {name: str(free_port()) for name in _HAPROXY_PORTS}
        env["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] = str(scratch / "haproxy.cfg")
        env["RAY_SERVE_HAPROXY_SOCKET_PATH"] = str(scratch / "admin.sock")
        env["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(scratch)
        env["RAY_SERVE_HAPROXY_SERVER_STATE_FILE"] = str(scratch / "server-state")
    return moved


def _switches(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that the configuration gives to Serve."""
    runtime_env = config.get("controller_options", {}).get("runtime_env", {})
    switches: dict[str, str] = runtime_env.get("env_vars", {})
    return switches


class ServiceProcess:
    """One service, from start to end."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        verbose: bool = False,
    ) -> None:
        """A launch of `config`, the content of a configuration file.

        Args:
            config: what `serve run` is given.
            env: variables for the service beside those of this process.
            verbose: pass on all that Ray prints.
        """
        http = config.get("http_options", {})
        self.url = f"http://{_reachable(http.get('host', '0.0.0.0'))}:{http.get('port', 8000)}"
        self._config = config
        self._env = dict(env or {})
        self._verbose = verbose
        self._tail: deque[str] = deque(maxlen=60)
        self._dashboard: str | None = None
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="embedserve-")

    def start(self) -> None:
        """Starts `serve run` and returns at once."""
        file = Path(self._scratch.name) / "serve_config.yaml"
        file.write_text(yaml.safe_dump(dict(self._config), sort_keys=False), encoding="utf-8")
        self._child = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(file)],
            env={"RAY_USAGE_STATS_ENABLED": "0", **os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent only
            preexec_fn=die_with_parent(signal.SIGINT),  # on which Ray ends all that it started
        )
        self._reader = threading.Thread(target=self._read_output, args=(self._child,), daemon=True)
        self._reader.start()

    def wait_until_ready(self, timeout_s: float = 600.0) -> Iterator[str]:
        """Yields what is going on, once for each change, until the service answers.

        Raises:
            LaunchError: it ended, failed to deploy, or is not ready in time.
        """
        begin = time.monotonic()
        said = ""
        while not self._healthy():
            if self._child is None or self._child.poll() is not None:
                raise StartupError("Ray ended before the service was up:\n" + "".join(self._tail))
            if time.monotonic() - begin > timeout_s:
                raise StartupError(f"The service was not ready after {timeout_s:.0f} s: {said}.")
            doing = self._doing()
            if doing != said:
                said = doing
                yield f"{doing} ({time.monotonic() - begin:.0f} s)"
            time.sleep(_POLL_S)

    def wait(self) -> int:
        """Waits until the service ends by itself; its exit status."""
        assert self._child is not None, "Start it first. This is a bug."
        self._verbose = True
        return self._child.wait()

    def stop(self) -> None:
        """Ends the service and everything it started; safe to call twice.

        Who interrupts it in turn doesn't want to wait: then all is killed.
        """
        self._verbose = False  # what Ray says while it is being torn down helps nobody
        family = self._family()  # now: one whose parent has ended can't be found any more
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(_STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._child.kill()
                self._child.wait()
        _end(family, _LINGER_S)
        servers = _cache_servers({process.pid for process in family})
        for process in servers:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _end(servers, SHUTDOWN_TIMEOUT_S + _LINGER_S)
        if self._reader is not None:
            self._reader.join()
        self._scratch.cleanup()

    def _read_output(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None, "The child was started with a pipe. This is a bug."
        for line in child.stdout:
            plain = _COLOURS.sub("", line)
            self._tail.append(plain)
            if found := _DASHBOARD.search(plain):
                self._dashboard = found.group(1)
            if self._verbose:
                sys.stderr.write(line)
                sys.stderr.flush()
        child.stdout.close()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _doing(self) -> str:
        if self._dashboard is None:
            return "Ray"
        application = self._application()
        if application is None:
            return "the application"
        if application.get("status") == "DEPLOY_FAILED":
            raise StartupError(_why(application))
        replicas = _replica_states(application)
        if not replicas:
            return "the application"
        return "replicas: " + ", ".join(
            f"{name} {states.count('RUNNING')}/{max(1, len(states))}"
            for name, states in replicas.items()
        )

    def processes(self) -> list[psutil.Process]:
        """Every process of the service: `serve run`, all that it started, and its cache server."""
        family = self._family()
        return [*family, *_cache_servers({process.pid for process in family})]

    def _family(self) -> list[psutil.Process]:
        if self._child is None:
            return []
        try:
            child = psutil.Process(self._child.pid)
            return [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def replica_states(self) -> dict[str, list[str]]:
        """The states of the replicas, as Ray names them (`RUNNING`, …), by deployment."""
        return _replica_states(self._application() or {})

    def _application(self) -> dict[str, Any] | None:
        """What Ray's dashboard knows of the application; None when it knows or tells nothing."""
        token = Path.home() / ".ray" / "auth_token"
        request = urllib.request.Request(f"{self._dashboard}/api/serve/applications/")
        if token.is_file():
            request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                applications = json.load(reply).get("applications", {})
        except (OSError, ValueError):
            return None
        found: dict[str, Any] | None = next(iter(applications.values()), None)
        return found


def _replica_states(application: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        name: [replica["state"] for replica in deployment.get("replicas", [])]
        for name, deployment in application.get("deployments", {}).items()
    }


def _why(application: Mapping[str, Any]) -> str:
    """What Ray tells of a failed application, of each stack trace only what was raised."""
    deployments = application.get("deployments", {}).items()
    told = {"The application": application, **dict(deployments)}
    return "\n".join(
        f"{name}: {_raised(part['message'])}"
        for name, part in told.items()
        if part.get("status") != "HEALTHY" and part.get("message")
    )


def _raised(message: str) -> str:
    starts = [match.start() for match in _RAISED.finditer(message)]
    return message[starts[-1] if starts else 0 :].strip()


def _cache_servers(owners: Collection[int]) -> list[psutil.Process]:
    """The supervisors of the cache servers that some processes own, and those servers.

    A supervisor is nobody's child, so that it survives a replica. It has no owner that is alive
    when a service has ended, and would end soon.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if parse_owner_pid(process.cmdline()) in owners:
                found += [process, *process.children()]
    return found


def _end(processes: Sequence[psutil.Process], patience_s: float) -> None:
    """Waits for processes that are about to end by themselves, and ends those that don't."""
    end = time.monotonic() + patience_s
    with suppress(KeyboardInterrupt):
        while any(map(_is_at_work, processes)) and time.monotonic() < end:
            time.sleep(_POLL_S)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _LINGER_S)


def _is_at_work(process: psutil.Process) -> bool:
    """Whether it still does something: one that has ended may stay listed for a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
