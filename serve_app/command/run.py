"""`embedserve run`: a service, and a number of copies of a program that use it.

service → workers with its URL in their environment → watch → stop the workers → the service
"""

import argparse
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from embedserve_client.client import Client
from embedserve_client.errors import ServiceNotRunningError
from embedserve_client.settings import EnvironmentSettings
from embedserve_client.supervisor import Supervisor, local_port
from serve_app.command.config_file import config_path, read_config
from serve_app.command.ports import is_free
from serve_app.command.progress import print_step
from serve_app.command.restarts import Restarts
from serve_app.command.service_process import StartupError
from serve_app.command.stop_signals import StopRequested, StopSignals
from serve_app.command.worker import Worker
from serve_app.command.worker_guard import WorkerGuard
from serve_app.command.worker_pool import WorkerPool
from serve_app.errors import ConfigurationError

_WATCH_S = 1.0
_MAX_PORT = 65_535
_DESCRIPTION = """\
Start the service, then several copies of a program, the workers, and keep all of them running. The
service is shared with other programs on its port that start one, and stops with the last of them.
"""
_EPILOG = """\
Each worker is a copy of COMMAND with these environment variables:
  PORT                      --port for the first worker, the next port for each other one
  EMBEDSERVE_URL            the URL of the service
  EMBEDDING_SERVER_HOST, EMBEDDING_SERVER_PORT
                            the host and the port of that URL

A worker that fails is started again, after 1, 2, 4, ... up to 30 s. SIGTERM, SIGINT and SIGHUP are
passed on to the workers, which may take --stop-timeout to answer their requests. Then they are
killed, and the service stops. All of their processes end with the command, even if it is killed.

examples:
  embedserve run --workers 3 --port 5000 -- python app.py
  embedserve run --ray --config one-machine -- uvicorn app:app
  embedserve run --url http://embed.internal:8000 --workers 8 -- python index.py

exit status: 0 every worker has finished, or has stopped after a signal; 1 a worker failed too often
or was killed; 2 usage error; 3 the service can't be started or reached, or keeps failing; 128 plus
the number of a signal that arrived before the service was ready
"""


def add_commands(commands: Any) -> None:
    """Adds `run` to the parser."""
    run = commands.add_parser(
        "run",
        help="run a service and several copies of a program that use it",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="embedserve run [options] -- COMMAND [ARGUMENT ...]",
    )
    add = run.add_argument
    add("--workers", type=_count, default=1, metavar="N", help="number of workers (default: 1)")
    add(
        "--port",
        type=_port,
        default=5000,
        help="PORT of the first worker (default: %(default)s)",
    )
    add("--url", help="use the service that runs there instead of starting one")
    add(
        "--config",
        type=config_path,
        help="the service's configuration: a file, or the name of a packaged one",
    )
    add(
        "--ray",
        action="store_true",
        help="run the service on Ray, which adds replicas and autoscaling",
    )
    add(
        "--service-port",
        type=_port,
        metavar="PORT",
        help="port of the service (default: that of EMBEDSERVE_URL, or 8000)",
    )
    _add_worker_options(add)
    add("command", nargs="+", metavar="COMMAND", help="the program and its arguments, after `--`")
    run.set_defaults(run=_run)


def _add_worker_options(add: Callable[..., Any]) -> None:
    add(
        "--restart",
        choices=("on-failure", "always"),
        default="on-failure",
        help="which workers to start again: those that don't exit with 0, or all (default: "
        "%(default)s)",
    )
    add(
        "--max-restarts",
        type=int,
        default=5,
        metavar="N",
        help="failures in a row after which a worker stays down, while the others go on (default: "
        "%(default)s)",
    )
    add(
        "--restart-delay",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="delay before the first restart; doubles with each failure in a row (default: "
        "%(default)g)",
    )
    add(
        "--stop-timeout",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long workers may take to stop before they are killed (default: %(default)g)",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {_MAX_PORT}")
    return port


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _run(arguments: argparse.Namespace) -> int:
    command = _find_program(arguments.command)
    service_port = None if arguments.url else _service_port(arguments)
    ports = _worker_ports(arguments, service_port)
    if arguments.config is not None:
        read_config(arguments.config, ray=False)  # an error is not worth a restart
    with StopSignals() as signals:
        try:
            with _open_service(arguments, service_port, signals) as (url, failure):
                with closing(WorkerGuard(arguments.stop_timeout)) as guard:
                    workers = [
                        Worker(
                            f"worker {i} on port {port}",
                            command,
                            _environment(url, port),
                            guard,
                            Restarts(arguments.max_restarts, arguments.restart_delay),
                            condition=arguments.restart,
                        )
                        for i, port in enumerate(ports, start=1)
                    ]
                    pool = WorkerPool(
                        workers, guard, signals, stop_timeout_s=arguments.stop_timeout
                    )
                    pool.run(failure)
                print_step("summary", pool.summary())
                if reason := failure():
                    raise ServiceNotRunningError(f"The service keeps failing: {reason}")
        except StopRequested as request:
            return 128 + request.number
    return 0 if pool.succeeded else 1


def _service_port(arguments: argparse.Namespace) -> int:
    port: int | None = arguments.service_port
    return local_port(EnvironmentSettings.read().url) if port is None else port


def _find_program(command: list[str]) -> list[str]:
    """Returns the command with the path of its program.

    Raises:
        ConfigurationError: there is no such program.
    """
    path = shutil.which(command[0])
    if path is None:
        raise ConfigurationError(
            f"There is no program {command[0]!r}. Check its name, its path and that it may be "
            "executed."
        )
    return [path, *command[1:]]


def _worker_ports(arguments: argparse.Namespace, service_port: int | None) -> range:
    """Returns the port of each worker.

    Raises:
        StartupError: one is the service's, in use, or doesn't exist.
    """
    ports = range(arguments.port, arguments.port + arguments.workers)
    if ports[-1] > _MAX_PORT:
        raise StartupError(f"There is no port {ports[-1]}. Choose a lower --port.")
    for port in ports:
        if port == service_port or not is_free("127.0.0.1", port):
            user = "is the service's" if port == service_port else "is in use"
            raise StartupError(
                f"Port {port}, which a worker would get, {user}. Choose another --port."
            )
    return ports


def _environment(url: str, port: int) -> dict[str, str]:
    parts = urlsplit(url)
    return {
        "PORT": str(port),
        "EMBEDSERVE_URL": url,
        "EMBEDDING_SERVER_HOST": parts.hostname or "",
        "EMBEDDING_SERVER_PORT": str(parts.port or (443 if parts.scheme == "https" else 80)),
    }


@contextmanager
def _open_service(
    arguments: argparse.Namespace, port: int | None, signals: StopSignals
) -> Iterator[tuple[str, Callable[[], str | None]]]:
    """Yields the URL of the service, and a function that returns why it has failed, if it has.

    Raises:
        ServiceNotRunningError: it can't be started, or the one at `--url` can't embed.
        NetworkError: there is none at `--url`.
        StopRequested: a signal arrived before it was ready.
    """
    if port is None:
        with signals.interrupting():
            url = _check_service(arguments)
        yield url, lambda: None
        return
    supervisor = Supervisor(
        port,
        config=arguments.config,
        use_ray=arguments.ray,
        on_progress=lambda message: print_step("starting", message) if message else None,
    )
    try:
        with signals.interrupting():
            supervisor.start()
        print_step("ready", supervisor.url)
        with closing(_ServiceWatch(supervisor)) as watch:
            yield supervisor.url, lambda: watch.failure
        print_step("stopping", "the service")
    finally:
        with suppress(StopRequested), signals.interrupting():
            supervisor.stop()


def _check_service(arguments: argparse.Namespace) -> str:
    """Returns the URL of a service that runs."""
    if arguments.ray or arguments.config or arguments.service_port:
        raise ConfigurationError(
            "--url uses a service that runs: leave out --ray, --config and --service-port."
        )
    with Client(arguments.url, fallback="none") as client:
        health = client.health()
    if health.get("status") not in ("ok", "degraded"):
        raise ServiceNotRunningError(
            f"The service at {client.base_url} can't embed: {health.get('reason')}"
        )
    print_step("ready", client.base_url)
    return client.base_url


class _ServiceWatch:
    """A thread that prints restarts of the service, and notices when it stays down."""

    def __init__(self, supervisor: Supervisor) -> None:
        #: Why the service stays down; None: it doesn't.
        self.failure: str | None = None
        self._supervisor = supervisor
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        state = "ready"
        while self.failure is None and not self._closed.wait(_WATCH_S):
            status = self._supervisor.status()
            if status.state == state:
                continue
            state = status.state
            if state == "restarting":
                print_step("restart", f"the service: {status.message}")
            elif state == "ready":
                print_step("ready", self._supervisor.url)
            elif state == "failed":
                self.failure = status.message or "it printed nothing"
