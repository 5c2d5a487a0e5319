"""`embedserve serve` and `embedserve prepare`: from a configuration file to a running service.

file → check settings and access → prepare the model → start the service → wait for a signal → stop
"""

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.command.ports import port_in_use, with_free_ports
from serve_app.command.service_process import ServiceProcess, StartupError
from serve_app.config import USER_CONFIGS, AppConfig, IngressSettings
from serve_app.config.section import describe_errors
from serve_app.errors import ConfigurationError
from serve_app.model_prep.engine_selection import select_engine

_LOCAL_CONFIG = Path("serve_config.yaml")
_PACKAGED_CONFIG = Path(__file__).parents[1] / "serve_config.yaml"
_RAY_LOGS = "/tmp/ray/session_latest/logs/serve"


def add_commands(commands: Any) -> None:
    """Adds `serve` and `prepare` to the parser."""
    serve = commands.add_parser(
        "serve",
        help="start the service and run it until Ctrl-C",
        description="Start the service and run it until Ctrl-C or SIGTERM. All of its processes "
        "end with the command.",
    )
    _add_config_argument(serve)
    serve.add_argument(
        "--port",
        type=int,
        help="HTTP port, instead of the configured one; the service's other ports move too, so "
        "that several services can run on one machine",
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
    _add_config_argument(prepare)
    prepare.set_defaults(run=_prepare)


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=_LOCAL_CONFIG if _LOCAL_CONFIG.is_file() else _PACKAGED_CONFIG,
        help="a Ray Serve configuration file (default: serve_config.yaml in the current "
        "directory, otherwise the packaged one)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    config, application = _read_config(arguments.config)
    _check_access(config)
    _prepare_model(application)
    with tempfile.TemporaryDirectory(prefix="embedserve-") as scratch:
        if arguments.port is not None:
            config = with_free_ports(config, arguments.port, Path(scratch))
        port = port_in_use(config)
        if port is not None:
            another = config.get("http_options", {}).get("port", 8000) + 1
            raise StartupError(
                f"Port {port} is in use. Stop the process that listens on it, or start this "
                f"service on other ports: `embedserve serve --port {another}`."
            )
        _install_signal_handlers()
        if arguments.until_eof:
            threading.Thread(target=_terminate_at_eof, daemon=True).start()
        return _run(ServiceProcess(config, verbose=arguments.verbose))


def _run(service: ServiceProcess) -> int:
    """Runs a service until it exits or a signal arrives, and returns the exit status."""
    try:
        service.start()
        for progress in service.wait_until_ready():
            _print_step("starting", progress)
        _print_ready(service.url)
        return service.wait()
    except StartupError as error:
        raise StartupError(f"{error}\nRay's logs: {_RAY_LOGS}") from None
    except KeyboardInterrupt:
        _print_step("stopping", "a few seconds   (Ctrl-C again kills it)")
        return 0
    finally:
        service.stop()
        _print_step("stopped", "all processes have ended")


def _prepare(arguments: argparse.Namespace) -> int:
    _, application = _read_config(arguments.config)
    _prepare_model(application)
    return 0


def _read_config(path: Path) -> tuple[dict[str, Any], AppConfig]:
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


def _check_access(config: Mapping[str, Any]) -> None:
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


def _install_signal_handlers() -> None:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt, even if the parent ignores SIGINT.

    The first signal stops the service, the second one ends the graceful stop. Further ones are
    ignored, so that nothing interrupts the cleanup.
    """
    interrupts = iter(range(2))

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
    _print_step("preparing", "the model, if its engine needs it (half a minute, once)")
    selection = select_engine(application)
    spec, parity = selection.spec, selection.parity
    _print_step("model", f"{spec.name}, {spec.dim} dimensions, {spec.max_tokens} tokens")
    if spec.weights_sha256 is not None:
        _print_step("weights", f"SHA-256 {spec.weights_sha256[:16]}…")
    _print_step("space", spec.space_id)
    for reason in selection.rejected:
        _print_step("rejected", reason)
    _print_step("engine", f"{selection.config.engine} at {selection.config.precision}")
    if parity is not None:
        _print_step("parity", f"cosine >= {parity.cosine_min:.7f} over {parity.texts} texts")


def _print_ready(url: str) -> None:
    _print_step("ready", f"{url}   (Ctrl-C stops it)")
    print(
        f"\n  curl {url}/v1/embeddings -H 'Content-Type: application/json' \\\n"
        """       -d '{"input": "Hello, world"}'\n""",
        flush=True,
    )


def _print_step(label: str, text: str) -> None:
    print(f"{label:>9}  {text}", flush=True)
