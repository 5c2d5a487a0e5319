"""`serve run` as a child process: its progress, its failure, and the end of all its processes.

Ray's own command prints nothing after the start, whether it succeeds or fails, and keeps running
when Ray's node has died. `ServiceProcess` polls the service until it is ready, notices when it
fails, and leaves no process behind.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.command.application_status import describe_replicas, failure_reasons
from serve_app.command.scratch_dir import ScratchDir
from serve_app.valkey.parent_death import die_with_parent
from serve_app.valkey.supervisor import SHUTDOWN_TIMEOUT_S, parse_owner_pid

_POLL_S = 0.3
_STOP_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 3.0
_MAX_FAILED_CHECKS = 24
_MAX_LOG_LINES = 60
_DASHBOARD = re.compile(r"View the dashboard at \S*?(http://[\d.:]+)")
#: Ray's node ends with each of these processes.
_NODE_PROGRAMS = ("gcs_server", "raylet")
#: The start of the title of Ray's actor that starts HAProxy.
_PROXY_MANAGER = "ray::HAProxyMan"
_ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class StartupError(Exception):
    """The service didn't start; the message gives the reason."""


class ServiceFailure(Exception):
    """The service was ready and can't serve any more; the message gives the reason."""


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
        self._node: list[psutil.Process] = []
        self._scratch = ScratchDir()

    def start(self) -> None:
        """Starts `serve run` and returns at once."""
        file = self._scratch.path / "serve_config.yaml"
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
            self._find_node()
            if reason := self._death():
                raise StartupError(f"{reason} before the service was up:\n{''.join(self._log)}")
            if time.monotonic() - started_at > timeout_s:
                raise StartupError(
                    f"The service was not ready after {timeout_s:.0f} s. Waiting for: {reported}."
                )
            progress = self._progress()
            if progress != reported:
                reported = progress
                yield f"{progress} ({time.monotonic() - started_at:.0f} s)"
            time.sleep(_POLL_S)
        self._find_node()

    def watch(self, check_period_s: float = 5.0) -> None:
        """Waits until the service fails. Prints Ray's output.

        A busy service does not fail: a check asks the Ingress only, and 24 in a row have to fail.

        Args:
            check_period_s: time between two checks, and the timeout of each.

        Raises:
            ServiceFailure: a process ended that the service can't do without, or nothing has
                answered for 24 checks: two minutes.
        """
        self._verbose = True
        failed_checks, next_check = 0, time.monotonic() + check_period_s
        while failed_checks < _MAX_FAILED_CHECKS:
            if reason := self._death():
                raise ServiceFailure(f"{reason}.")
            if time.monotonic() >= next_check:
                answers = self._answers("/v1/health/live", check_period_s)
                failed_checks = 0 if answers else failed_checks + 1
                next_check = time.monotonic() + check_period_s
            time.sleep(min(_POLL_S, check_period_s))
        raise ServiceFailure(f"Nothing answers at {self.url}.")

    def drain(self, timeout_s: float) -> bool:
        """Closes the port, waits for the requests in flight, and returns whether all have ended.

        HAProxy does both: on SIGUSR1 it stops listening, and exits after its last response. Without
        HAProxy this returns at once.
        """
        tree = self._process_tree()
        proxies = [p for p in tree if _name(p) == "haproxy"]
        # Paused, because it would replace a proxy that doesn't listen any more.
        managers = [p for p in tree if _name(p).startswith(_PROXY_MANAGER)]
        try:
            _signal(managers, signal.SIGSTOP)
            _signal(proxies, signal.SIGUSR1)
            deadline = time.monotonic() + timeout_s
            while any(map(_is_running, proxies)) and time.monotonic() < deadline:
                time.sleep(_POLL_S / 3)
        finally:
            _signal(managers, signal.SIGCONT)
        return not any(map(_is_running, proxies))

    def stop(self, *, kill: bool = False) -> None:
        """Ends the service and every process that it started. Further calls do nothing.

        A KeyboardInterrupt skips the wait for a graceful end: all processes are killed.

        Args:
            kill: don't ask Ray to end gracefully, which takes long if it has failed.
        """
        self._verbose = False  # Ray's output during shutdown is noise
        tree = self._process_tree()  # now: children of an exited parent can't be found later
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(0 if kill else _STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._child.kill()
                self._child.wait()
        _wait_or_kill(tree, 0 if kill else _EXIT_TIMEOUT_S)
        servers = _cache_servers({process.pid for process in [*tree, *self._node]})
        for process in servers:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _wait_or_kill(servers, SHUTDOWN_TIMEOUT_S + _EXIT_TIMEOUT_S)
        if self._reader is not None:
            self._reader.join()
        self._scratch.remove()

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

    def _find_node(self) -> None:
        """Finds the processes of Ray's node. There are none if the service uses another Ray."""
        if len(self._node) < len(_NODE_PROGRAMS):
            self._node = [p for p in self._process_tree() if _name(p) in _NODE_PROGRAMS]

    def _death(self) -> str | None:
        """Returns which process has ended that the service can't do without; None: none has."""
        if self._child is None or (status := self._child.poll()) is not None:
            return f"Ray exited with status {status}"
        if not all(map(_is_running, self._node)):
            return "Ray's node died"
        return None

    def _is_healthy(self) -> bool:
        return self._answers("/health", 1)

    def _answers(self, path: str, timeout_s: float) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_s) as response:
                return bool(response.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _progress(self) -> str:
        if self.dashboard_url is None:
            return "Ray"
        application = self._application()
        if application is None:
            return "the application"
        if application.get("status") == "DEPLOY_FAILED":
            raise StartupError(failure_reasons(application))
        replicas = _replica_states(application)
        if not replicas:
            return "the application"
        return describe_replicas({name: Counter(states) for name, states in replicas.items()})

    def _process_tree(self) -> list[psutil.Process]:
        """Returns the processes of the child's session, which contains orphaned ones too."""
        if self._child is None:
            return []
        return [p for p in psutil.process_iter() if _session(p) == self._child.pid]

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


def _session(process: psutil.Process) -> int | None:
    """Returns the id of a process's session; None if the process has ended."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def _name(process: psutil.Process) -> str:
    """Returns the name of a process; empty if it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _is_running(process: psutil.Process) -> bool:
    """Returns whether a process runs. A zombie doesn't: it has exited but is still listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _client_host(host: str) -> str:
    """Returns the host under which this machine reaches a server that listens on `host`."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
