"""A service that runs while programs use it, shared by all programs on the same port.

    with Supervisor() as supervisor:
        vectors = Client(supervisor.url).embed(["a text"])

The first program starts the service through a supervisor process. It stops when the last program
releases it, exits, or is killed. A service that was started otherwise is used and never stopped.
"""

import atexit
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from filelock import FileLock

from embedserve_client.client import Client
from embedserve_client.errors import ServiceNotRunningError
from embedserve_client.settings import DEFAULT_PORT, runtime_dir
from embedserve_client.shared_service_dir import ServiceState, SharedServiceDir

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_WATCH_S = 1.0
_HEALTH_TIMEOUT_S = 2.0
#: The time in which a new supervisor process must take its lock.
_LAUNCH_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 75.0


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The status of a service."""

    state: ServiceState | Literal["absent"]
    managed: bool  #: False: the service was started otherwise, or isn't running
    healthy: bool
    pid: int | None = None  #: of the service process; None: not managed
    restarts: int = 0  #: since the supervisor process started
    message: str = ""  #: the last line of the service's output, or the reason of a failure


class Supervisor:
    """One program's use of a shared service. Thread-safe."""

    def __init__(
        self,
        port: int = DEFAULT_PORT,
        *,
        config: str | Path | None = None,
        use_ray: bool = False,
        command: Sequence[str] | None = None,
        ready_timeout_s: float = 600.0,
        restart_delay_s: float = 1.0,
        max_restarts: int = 5,
        unresponsive_timeout_s: float = 30.0,
        on_progress: Callable[[str], None] | None = None,
        shared_dir: Path | None = None,
    ) -> None:
        """Creates a supervisor without starting the service.

        Args:
            port: the port of the service on the loopback interface.
            config: the service's configuration file; None: its default configuration.
            use_ray: run the service on Ray, which adds replicas and autoscaling. Otherwise it is
                one process, which starts in seconds.
            command: replaces `embedserve serve --standalone`; it must listen on `port` and exit
                when its standard input ends.
            ready_timeout_s: the time in which the service must become healthy. The first start
                prepares the model.
            restart_delay_s: the delay before a crashed service restarts; doubles with each failure
                in a row, up to 30 s.
            max_restarts: the number of failures in a row after which the service stays down.
            unresponsive_timeout_s: the time without an answer after which a ready service is
                stopped and restarted like one that crashed.
            on_progress: called with each line of output while the service starts.
            shared_dir: the directory through which programs share the service; None: one for each
                user and port.
        """
        self.url = f"http://127.0.0.1:{port}"
        self._command = list(command or _serve_command(port, config, use_ray))
        self._ready_timeout_s = ready_timeout_s
        self._restart_delay_s = restart_delay_s
        self._max_restarts = max_restarts
        self._unresponsive_timeout_s = unresponsive_timeout_s
        self._on_progress = on_progress or (lambda line: None)
        self._shared_dir = SharedServiceDir(shared_dir or runtime_dir() / str(port))
        self._lock = threading.Lock()
        self._user_lock: FileLock | None = None
        self._released = threading.Event()
        self._logged_restarts = 0

    def start(self) -> ServiceStatus:
        """Starts the service if it isn't running, and waits until it is healthy.

        Raises:
            ServiceNotRunningError: it can't be started, or isn't ready in time.
        """
        with self._lock:
            is_new_user = self._user_lock is None
            if is_new_user:
                self._released = threading.Event()
                self._user_lock = self._shared_dir.register_user()
                atexit.register(self.stop)
            try:
                self._wait_until_ready()
            except BaseException:
                self._release()
                raise
            if is_new_user:
                threading.Thread(target=self._watch, args=(self._released,), daemon=True).start()
            return self.status()

    def status(self) -> ServiceStatus:
        """Returns the current status."""
        healthy = self._is_healthy()
        report = self._shared_dir.read_report()
        if not self._shared_dir.has_supervisor():
            failed = report is not None and report.state == "failed" and not healthy
            message = report.message if failed and report else ""
            state: ServiceState | Literal["absent"] = "failed" if failed else "absent"
            return ServiceStatus("ready" if healthy else state, False, healthy, message=message)
        if report is None:
            return ServiceStatus("starting", True, healthy)
        return ServiceStatus(
            report.state, True, healthy, report.service_pid, report.restarts, report.message
        )

    def restart(self) -> ServiceStatus:
        """Restarts the service for all programs that share it.

        Raises:
            ServiceNotRunningError: it wasn't started by a supervisor, or doesn't become ready.
        """
        before = self.status()
        if not before.managed:
            raise ServiceNotRunningError(
                f"The service at {self.url} wasn't started by a supervisor. Restart it the way it "
                "was started."
            )
        self._shared_dir.request_restart()
        deadline = time.monotonic() + self._ready_timeout_s
        while self.status().restarts == before.restarts and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self.start()

    def stop(self, *, wait: bool = True) -> None:
        """Releases the service, which stops if no other program uses it.

        Args:
            wait: waits until the service has stopped, up to 75 s, unless another program uses it.
        """
        with self._lock:
            if self._user_lock is None:
                return
            self._release()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while wait and time.monotonic() < deadline and self._shared_dir.has_supervisor():
            if self._shared_dir.count_users():
                return
            time.sleep(_POLL_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _is_healthy(self) -> bool:
        with Client(self.url, fallback="none") as client:
            return client.is_healthy(_HEALTH_TIMEOUT_S)

    def _release(self) -> None:
        self._released.set()
        atexit.unregister(self.stop)
        if self._user_lock is not None:
            self._user_lock.release()
            self._user_lock = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._ready_timeout_s
        last_message, launched_at = "", None
        report = self._shared_dir.read_report()
        self._logged_restarts = 0 if report is None else report.restarts
        while time.monotonic() < deadline:
            status = self.status()
            self._log_restart(status.restarts)
            if status.state == "ready" and status.healthy:
                return
            if not status.managed:
                if launched_at is None:
                    logger.info("Starting a service at %s.", self.url)
                    self._shared_dir.clear()
                    self._launch_supervisor_process()
                    launched_at = time.monotonic()
                elif status.state == "failed" or time.monotonic() - launched_at > _LAUNCH_TIMEOUT_S:
                    raise ServiceNotRunningError(
                        f"The service keeps failing: {status.message or 'it printed nothing'}\n"
                        f"Its output is in {self._shared_dir.log}"
                    )
            if status.message != last_message:
                last_message = status.message
                self._on_progress(last_message)
            time.sleep(_POLL_S)
        raise ServiceNotRunningError(
            f"The service was not ready after {self._ready_timeout_s:.0f} s: {last_message}"
        )

    def _launch_supervisor_process(self) -> None:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "embedserve_client.supervisor_process"),
                *("--restart-delay-s", str(self._restart_delay_s)),
                *("--max-restarts", str(self._max_restarts)),
                *("--unresponsive-timeout-s", str(self._unresponsive_timeout_s)),
                *("--ready-timeout-s", str(self._ready_timeout_s)),
                *(str(self._shared_dir.path), self.url, "--", *self._command),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in this terminal must not stop it for other programs
        )
        # Its parent must wait for it, or it stays as a zombie process.
        threading.Thread(target=process.wait, daemon=True).start()

    def _log_restart(self, restarts: int) -> None:
        if restarts > self._logged_restarts:
            logger.info("Restart %d of the service at %s.", restarts, self.url)
        self._logged_restarts = restarts

    def _watch(self, released: threading.Event) -> None:
        """Relaunches the supervisor process if it was killed, which also ends the service."""
        while not released.wait(_WATCH_S):
            report = self._shared_dir.read_report()
            if report is not None:
                self._log_restart(report.restarts)
            if not self._shared_dir.has_supervisor() and not self._is_healthy():
                report = self._shared_dir.read_report()
                if report is not None and report.state == "failed":
                    logger.warning(
                        "The service at %s keeps failing and stays down. Its output is in %s",
                        self.url,
                        self._shared_dir.log,
                    )
                    return
                logger.info("The service at %s was ended. Starting it again.", self.url)
                self._launch_supervisor_process()
                released.wait(_LAUNCH_TIMEOUT_S)


def _serve_command(port: int, config: str | Path | None, use_ray: bool) -> list[str]:
    return [
        *(sys.executable, "-m", "embedserve_client.command.main", "serve"),
        *([] if config is None else [str(config)]),
        *([] if use_ray else ["--standalone"]),
        *("--port", str(port), "--until-eof"),
    ]


def local_port(url: str) -> int:
    """Returns the port of a URL on this machine.

    Raises:
        ServiceNotRunningError: the URL is on another machine, where no service can be started.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost"):
        raise ServiceNotRunningError(
            f"A service can only be started on this machine, not at {url}. Set EMBEDSERVE_URL to "
            "http://127.0.0.1:PORT."
        )
    return parts.port or DEFAULT_PORT
