"""`serve run` as a child process: its progress, its failure, and the end of all its processes.

Ray's own command prints nothing after the start, whether it succeeds or fails. `ServiceProcess`
polls the service until it is ready, reports the reason of a failure, and leaves no process behind.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
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
_STOP_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 3.0
_MAX_LOG_LINES = 60
_DASHBOARD = re.compile(r"View the dashboard at \S*?(http://[\d.:]+)")
_EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w+: ", re.MULTILINE)
_ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class StartupError(Exception):
    """The service didn't start; the message gives the reason."""


class ServiceProcess:
    """A `serve run` process, with everything that it starts."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        verbose: bool = False,
        python: str = sys.executable,
    ) -> None:
        """Creates the process without starting it.

        Args:
            config: the content of a configuration file.
            env: environment variables in addition to those of this process.
            verbose: print Ray's output to standard error.
            python: the interpreter that runs `serve run`.
        """
        http = config.get("http_options", {})
        self.url = f"http://{_client_host(http.get('host', '0.0.0.0'))}:{http.get('port', 8000)}"
        self._config = config
        self._env = dict(env or {})
        self._verbose = verbose
        self._python = python
        self._log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self.dashboard_url: str | None = None
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="embedserve-")

    def start(self) -> None:
        """Starts `serve run` and returns at once."""
        file = Path(self._scratch.name) / "serve_config.yaml"
        file.write_text(yaml.safe_dump(dict(self._config), sort_keys=False), encoding="utf-8")
        self._child = subprocess.Popen(
            [self._python, "-m", "ray.serve.scripts", "run", str(file)],
            env={"RAY_USAGE_STATS_ENABLED": "0", **os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent only
            preexec_fn=die_with_parent(signal.SIGINT),  # on SIGINT, Ray ends all that it started
        )
        self._reader = threading.Thread(target=self._read_output, args=(self._child,), daemon=True)
        self._reader.start()

    def wait_until_ready(self, timeout_s: float = 600.0) -> Iterator[str]:
        """Yields the startup progress at each change, until the service is healthy.

        Raises:
            StartupError: the process exited, the deployment failed, or the timeout expired.
        """
        started_at = time.monotonic()
        reported = ""
        while not self._is_healthy():
            if self._child is None or self._child.poll() is not None:
                raise StartupError("Ray exited before the service was up:\n" + "".join(self._log))
            if time.monotonic() - started_at > timeout_s:
                raise StartupError(
                    f"The service was not ready after {timeout_s:.0f} s. Waiting for: {reported}."
                )
            progress = self._progress()
            if progress != reported:
                reported = progress
                yield f"{progress} ({time.monotonic() - started_at:.0f} s)"
            time.sleep(_POLL_S)

    def wait(self) -> int:
        """Waits until the service exits, and returns its exit status. Prints Ray's output."""
        assert self._child is not None, "Start it first. This is a bug."
        self._verbose = True
        return self._child.wait()

    def stop(self) -> None:
        """Ends the service and every process that it started. Further calls do nothing.

        A KeyboardInterrupt skips the wait for a graceful end: all processes are killed.
        """
        self._verbose = False  # Ray's output during shutdown is noise
        tree = self._process_tree()  # now: children of an exited parent can't be found later
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(_STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._child.kill()
                self._child.wait()
        _wait_or_kill(tree, _EXIT_TIMEOUT_S)
        servers = _cache_servers({process.pid for process in tree})
        for process in servers:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _wait_or_kill(servers, SHUTDOWN_TIMEOUT_S + _EXIT_TIMEOUT_S)
        if self._reader is not None:
            self._reader.join()
        self._scratch.cleanup()

    def processes(self) -> list[psutil.Process]:
        """Returns every process of the service, its cache server included."""
        tree = self._process_tree()
        return [*tree, *_cache_servers({process.pid for process in tree})]

    def replica_states(self) -> dict[str, list[str]]:
        """Returns the states of the replicas, in Ray's terms (`RUNNING`, …), by deployment."""
        return _replica_states(self._application() or {})

    def _read_output(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None, "The child was started with a pipe. This is a bug."
        for line in child.stdout:
            plain = _ANSI_COLOR.sub("", line)
            self._log.append(plain)
            if match := _DASHBOARD.search(plain):
                self.dashboard_url = match.group(1)
            if self._verbose:
                sys.stderr.write(line)
                sys.stderr.flush()
        child.stdout.close()

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _progress(self) -> str:
        if self.dashboard_url is None:
            return "Ray"
        application = self._application()
        if application is None:
            return "the application"
        if application.get("status") == "DEPLOY_FAILED":
            raise StartupError(_failure_reasons(application))
        replicas = _replica_states(application)
        if not replicas:
            return "the application"
        return "replicas: " + ", ".join(
            f"{name} {states.count('RUNNING')}/{max(1, len(states))}"
            for name, states in replicas.items()
        )

    def _process_tree(self) -> list[psutil.Process]:
        if self._child is None:
            return []
        try:
            child = psutil.Process(self._child.pid)
            return [child, *child.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _application(self) -> dict[str, Any] | None:
        """Returns Ray's description of the application; None if the dashboard has none yet."""
        token = Path.home() / ".ray" / "auth_token"
        request = urllib.request.Request(f"{self.dashboard_url}/api/serve/applications/")
        if token.is_file():
            request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                applications = json.load(response).get("applications", {})
        except (OSError, ValueError):
            return None
        application: dict[str, Any] | None = next(iter(applications.values()), None)
        return application


def _replica_states(application: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        name: [replica["state"] for replica in deployment.get("replicas", [])]
        for name, deployment in application.get("deployments", {}).items()
    }


def _failure_reasons(application: Mapping[str, Any]) -> str:
    """Returns Ray's messages about a failed application, without stack traces."""
    components = {"The application": application, **application.get("deployments", {})}
    return "\n".join(
        f"{name}: {_exception_text(component['message'])}"
        for name, component in components.items()
        if component.get("status") != "HEALTHY" and component.get("message")
    )


def _exception_text(message: str) -> str:
    """Returns the last exception of a stack trace, or the message if it contains none."""
    starts = [match.start() for match in _EXCEPTION.finditer(message)]
    return message[starts[-1] if starts else 0 :].strip()


def _cache_servers(owner_pids: Collection[int]) -> list[psutil.Process]:
    """Returns the cache servers that these processes own, and the servers' supervisors.

    A supervisor is no child of its owner, so that it survives a replica. It exits on its own soon
    after its owner.
    """
    servers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if parse_owner_pid(process.cmdline()) in owner_pids:
                servers += [process, *process.children()]
    return servers


def _wait_or_kill(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Waits for processes that are about to exit, and kills those that don't."""
    deadline = time.monotonic() + timeout_s
    with suppress(KeyboardInterrupt):
        while any(map(_is_running, processes)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _EXIT_TIMEOUT_S)


def _is_running(process: psutil.Process) -> bool:
    """Returns whether a process runs. A zombie doesn't: it has exited but is still listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _client_host(host: str) -> str:
    """Returns the host under which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
