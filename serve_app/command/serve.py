"""`embedserve serve` and `embedserve prepare`: from a configuration file to a running service.

file → check settings and access → prepare the model → start the service → wait for a signal or a
failure → drain and stop, or start again
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.command.ports import port_in_use, with_free_ports
from serve_app.command.scratch_dir import ScratchDir
from serve_app.command.service_process import ServiceFailure, ServiceProcess, StartupError
from serve_app.config import USER_CONFIGS, AppConfig, IngressSettings
from serve_app.config.section import describe_errors
from serve_app.errors import ConfigurationError
from serve_app.model_prep.engine_selection import select_engine

_LOCAL_CONFIG = Path("serve_config.yaml")
_PACKAGED_CONFIG = Path(__file__).parents[1] / "serve_config.yaml"
#: Failures in a row after which the service stays down, and the delay before the first restart,
#: which doubles with each failure.
_MAX_RESTARTS = 5
_RESTART_DELAY_S = 1.0
_MAX_RESTART_DELAY_S = 30.0
#: After this time a failure is the first one in a row.
_STABLE_S = 60.0
_RAY_LOGS = "/tmp/ray/session_latest/logs/serve"


def add_commands(commands: Any) -> None:
    """Adds `serve` and `prepare` to the parser."""
    serve = commands.add_parser(
        "serve",
        help="start the service and run it until Ctrl-C",
        description="Start the service and run it until Ctrl-C or SIGTERM. Requests in flight are "
        "answered before it stops. All of its processes end with the command. If Ray fails, the "
        "service is started again, up to five times in a row.",
    )
    add_config_argument(serve)
    serve.add_argument(
        "--port",
        type=int,
        help="HTTP port, instead of the configured one; the service's other ports move too, so "
        "that several services can run on one machine",
    )
    serve.add_argument(
        "--drain-timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="how long requests in flight may take after a signal to stop (default: 5); stopping "
        "takes about five seconds more",
    )
    serve.add_argument("--verbose", action="store_true", help="print Ray's output")
    serve.add_argument(
        "--until-eof",
        action="store_true",
        help="stop at the end of standard input, so that the service doesn't outlive the program "
        "that started it",
    )
    serve.set_defaults(run=_serve)

    prepare = commands.add_parser(
        "prepare",
        help="check the configuration, prepare the model and select its engine",
        description="Check the configuration and the model's files, select the engine and prepare "
        "the model for it. `serve` does the same; run `prepare` ahead of time, for example when "
        "you build a container image.",
    )
    add_config_argument(prepare)
    prepare.set_defaults(run=_prepare)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the path of the configuration file."""
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=_LOCAL_CONFIG if _LOCAL_CONFIG.is_file() else _PACKAGED_CONFIG,
        help="a Ray Serve configuration file (default: serve_config.yaml in the current "
        "directory, otherwise the packaged one)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    config, application = read_config(arguments.config)
    check_access(config)
    _prepare_model(application)
    with ScratchDir() as scratch:
        if arguments.port is not None:
            config = with_free_ports(config, arguments.port, scratch.path)
        port = port_in_use(config)
        if port is not None:
            another = config.get("http_options", {}).get("port", 8000) + 1
            raise StartupError(
                f"Port {port} is in use. Stop the process that listens on it, or start this "
                f"service on other ports: `embedserve serve --port {another}`."
            )
        _accept_signal()
        if arguments.until_eof:
            threading.Thread(target=_terminate_at_eof, daemon=True).start()
        return _run(config, verbose=arguments.verbose, drain_timeout_s=arguments.drain_timeout)


def _run(config: Mapping[str, Any], *, verbose: bool, drain_timeout_s: float) -> int:
    """Runs the service until a signal arrives, and returns the exit status.

    Raises:
        StartupError: it couldn't be started, or has failed too often in a row.
    """
    failures = 0
    service = ServiceProcess(config, verbose=verbose)
    try:
        while True:
            ready_at = time.monotonic()
            try:
                for progress in _start(service):
                    print_step("starting", progress)
                _print_ready(service.url)
                ready_at = time.monotonic()
                service.watch()
            except (ServiceFailure, StartupError) as failure:
                if failures == 0 and isinstance(failure, StartupError):
                    raise
                failures = 1 if time.monotonic() - ready_at > _STABLE_S else failures + 1
                print_step("failed", str(failure))
            service.stop(kill=True)
            if failures > _MAX_RESTARTS:
                raise StartupError(f"The service failed {failures} times in a row.")
            delay_s = min(_MAX_RESTART_DELAY_S, _RESTART_DELAY_S * 2 ** (failures - 1))
            print_step("restart", f"{failures} of {_MAX_RESTARTS}, in {delay_s:.0f} s")
            time.sleep(delay_s)
            service = ServiceProcess(config, verbose=verbose)
    except KeyboardInterrupt:
        _drain(service, drain_timeout_s)
        return 0
    except StartupError as error:
        raise StartupError(f"{error}\nRay's logs: {_RAY_LOGS}") from None
    finally:
        service.stop()
        print_step("stopped", "all processes have ended")


def _start(service: ServiceProcess) -> Iterator[str]:
    """Starts a service and yields its progress until it is ready."""
    service.start()
    yield from service.wait_until_ready()


def _drain(service: ServiceProcess, timeout_s: float) -> None:
    """Waits for the requests in flight, up to a timeout or until the next signal."""
    _accept_signal()
    print_step("draining", f"requests in flight, up to {timeout_s:g} s   (Ctrl-C again skips it)")
    try:
        if not service.drain(timeout_s):
            print_step("draining", "some requests take longer and are cut off")
    except KeyboardInterrupt:
        pass
    _accept_signal()
    print_step("stopping", "a few seconds   (Ctrl-C again kills it)")


def _prepare(arguments: argparse.Namespace) -> int:
    _, application = read_config(arguments.config)
    _prepare_model(application)
    return 0


def read_config(path: Path) -> tuple[dict[str, Any], AppConfig]:
    """Returns the content of a configuration file, and the `args` of its application.

    Raises:
        ConfigurationError: the file can't be read, or a setting is not valid.
    """
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        applications = ServeDeploySchema.model_validate(config).applications
        if not applications:
            raise ConfigurationError("`applications` is empty")
        for deployment in config["applications"][0].get("deployments", []):
            if deployment["name"] in USER_CONFIGS:
                USER_CONFIGS[deployment["name"]].parse(deployment.get("user_config"))
        return config, AppConfig.parse(applications[0].args)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Can't read {path} ({error}). Run the command in the project's directory, or pass the "
            "path of a file."
        ) from None
    except ValidationError as error:
        fault = describe_errors(error)
    except yaml.YAMLError as error:
        fault = " ".join(str(error).split())
    except ConfigurationError as error:
        fault = str(error)
    raise ConfigurationError(f"{path} is not a valid configuration: {fault}")


def check_access(config: Mapping[str, Any]) -> None:
    """Raises the error that each Ingress replica would raise later.

    Raises:
        ConfigurationError: see `require_keys_beyond_loopback`.
    """
    if config.get("proxy_location") == "Disabled":
        return
    deployments = config["applications"][0].get("deployments", [])
    user_config = next((d.get("user_config") for d in deployments if d["name"] == "Ingress"), None)
    host = config.get("http_options", {}).get("host", "0.0.0.0")
    require_keys_beyond_loopback(host, IngressSettings.parse(user_config).access)


def _accept_signal() -> None:
    """Turns the next SIGINT or SIGTERM into KeyboardInterrupt, even if the parent ignores SIGINT.

    Further signals are ignored until the next call, so that nothing interrupts the cleanup.
    """
    interrupts = iter(range(1))

    def interrupt(number: int, frame: FrameType | None) -> None:
        if next(interrupts, None) is not None:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def _terminate_at_eof() -> None:
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _prepare_model(application: AppConfig) -> None:
    """Selects the engine as the application will, and prints the selection."""
    print_step("preparing", "the model, if its engine needs it (half a minute, once)")
    selection = select_engine(application)
    spec, parity = selection.spec, selection.parity
    print_step("model", f"{spec.name}, {spec.dim} dimensions, {spec.max_tokens} tokens")
    if spec.weights_sha256 is not None:
        print_step("weights", f"SHA-256 {spec.weights_sha256[:16]}…")
    print_step("space", spec.space_id)
    for reason in selection.rejected:
        print_step("rejected", reason)
    print_step("engine", f"{selection.config.engine} at {selection.config.precision}")
    if parity is not None:
        print_step("parity", f"cosine >= {parity.cosine_min:.7f} over {parity.texts} texts")


def _print_ready(url: str) -> None:
    print_step("ready", f"{url}   (Ctrl-C stops it)")
    print(
        f"\n  curl {url}/v1/embeddings -H 'Content-Type: application/json' \\\n"
        """       -d '{"input": "Hello, world"}'\n""",
        flush=True,
    )


def print_step(label: str, text: str) -> None:
    """Prints a line of progress."""
    print(f"{label:>9}  {text}", flush=True)
