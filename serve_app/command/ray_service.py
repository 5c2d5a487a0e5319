"""`serve run` as the process of a service: Ray's node, the application's status and HAProxy.

Ray's own command prints nothing after the start, whether it succeeds or fails, and keeps running
when Ray's node has died.
"""

import json
import os
import re
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from serve_app.command.application_status import describe_replicas, failure_reasons
from serve_app.command.config_file import http_address, http_url
from serve_app.command.process_tree import (
    command_line,
    have_exited,
    is_running,
    process_name,
    send_signal,
)
from serve_app.command.scratch_dir import ScratchDir
from serve_app.command.service_process import ServiceProcess, StartupError
from serve_app.proxy import guard

#: Variables of the environment, where it doesn't set them.
_DEFAULT_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's default is 5 s. On a busy machine, a proxy takes longer to import Ray Serve, and
    # `serve run` ends when Ray kills the first one.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
}
_DASHBOARD = re.compile(r"View the dashboard at \S*?(http://[\d.:]+)")
#: Ray's node ends with each of these processes.
_NODE_PROGRAMS = ("gcs_server", "raylet")
#: The start of the title of Ray's actor that starts HAProxy.
_PROXY_MANAGER = "ray::HAProxyMan"
#: An argument of the process that keeps the port while HAProxy is replaced.
_GUARD = guard.__name__


class RayService(ServiceProcess):
    """A `serve run` process, with everything that it starts."""

    _name = "Ray"

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
        self._scratch = ScratchDir()
        self._file = self._scratch.path / "serve_config.yaml"
        super().__init__(
            [python, "-m", "ray.serve.scripts", "run", str(self._file)],
            http_url(*http_address(config)),
            env={**_DEFAULT_ENV, **os.environ, **(env or {})},
            verbose=verbose,
        )
        self._config, self._python = config, python
        self.dashboard_url: str | None = None
        self._node: list[psutil.Process] = []
        #: When each application was deployed for the last time, in Unix time.
        self._deployed_at: dict[str, float] = {}

    def successor(self) -> Self:
        """Returns a new process with the configuration that was deployed last and ran."""
        return type(self)(
            self._config, env=self._env, verbose=self._verbose_at_start, python=self._python
        )

    def start(self) -> None:
        """Starts `serve run` and returns at once."""
        text = yaml.safe_dump(dict(self._config), sort_keys=False)
        self._file.write_text(text, encoding="utf-8")
        super().start()

    def drain(self, timeout_s: float) -> bool:
        """Closes the port, waits for the requests in flight, and returns whether all have ended.

        HAProxy does both: on SIGUSR1 it stops listening, and exits after its last response. Without
        HAProxy this returns at once.
        """
        tree = self._process_tree()
        # It holds the listening socket, and would replace a proxy that has ended.
        send_signal([p for p in tree if _GUARD in command_line(p)], signal.SIGTERM)
        proxies = [p for p in tree if process_name(p) == "haproxy"]
        # Paused, because it would replace a proxy that doesn't listen any more.
        managers = [p for p in tree if process_name(p).startswith(_PROXY_MANAGER)]
        try:
            send_signal(managers, signal.SIGSTOP)
            send_signal(proxies, signal.SIGUSR1)
            return have_exited(proxies, timeout_s)
        finally:
            send_signal(managers, signal.SIGCONT)

    def stop(self, *, kill: bool = False) -> None:
        """Ends the service and every process that it started. Further calls do nothing."""
        super().stop(kill=kill)
        self._scratch.remove()

    def application(self) -> dict[str, Any]:
        """Returns Ray's description of the application, as in its API; empty if it has none yet."""
        return next(iter(self._applications().values()), {})

    def replica_states(self) -> dict[str, list[str]]:
        """Returns the states of the replicas, in Ray's terms (`RUNNING`, …), by deployment."""
        return _replica_states(self.application())

    def _on_line(self, line: str) -> None:
        if match := _DASHBOARD.search(line):
            self.dashboard_url = match.group(1)

    def _on_answer(self) -> None:
        """Remembers the configuration if another one has been deployed and runs."""
        self._find_node()
        applications = self._applications()
        if not all(a.get("status") == "RUNNING" for a in applications.values()):
            return
        deployed_at = {name: a.get("last_deployed_time_s", 0.0) for name, a in applications.items()}
        configs = [a.get("deployed_app_config") for a in applications.values()]
        if self._deployed_at and deployed_at not in ({}, self._deployed_at) and all(configs):
            self._config = {**self._config, "applications": configs}
        self._deployed_at = deployed_at or self._deployed_at

    def _find_node(self) -> None:
        """Finds the processes of Ray's node. There are none if the service uses another Ray."""
        if len(self._node) < len(_NODE_PROGRAMS):
            self._node = [p for p in self._process_tree() if process_name(p) in _NODE_PROGRAMS]

    def _death(self) -> str | None:
        if reason := super()._death():
            return reason
        return None if all(map(is_running, self._node)) else "Ray's node died"

    def _owner_pids(self, tree: Sequence[psutil.Process]) -> set[int]:
        return super()._owner_pids([*tree, *self._node])

    def _progress(self) -> str:
        self._find_node()
        if self.dashboard_url is None:
            return "Ray"
        application = self.application()
        if application.get("status") == "DEPLOY_FAILED":
            raise StartupError(failure_reasons(application))
        replicas = _replica_states(application)
        if not replicas:
            return "the application"
        return describe_replicas({name: Counter(states) for name, states in replicas.items()})

    def _applications(self) -> dict[str, dict[str, Any]]:
        """Returns Ray's description of each application, by name, as far as it has one yet."""
        if self.dashboard_url is None:  # HTTP may answer before the line that names it is read
            return {}
        token = Path.home() / ".ray" / "auth_token"
        request = urllib.request.Request(f"{self.dashboard_url}/api/serve/applications/")
        if token.is_file():
            request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                applications: dict[str, dict[str, Any]] = json.load(response)["applications"]
        except (OSError, ValueError, KeyError):
            return {}
        return applications


def _replica_states(application: Mapping[str, Any]) -> dict[str, list[str]]:
    return {
        name: [replica["state"] for replica in deployment.get("replicas", [])]
        for name, deployment in application.get("deployments", {}).items()
    }
