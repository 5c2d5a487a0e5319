"""`embedserve serve` and `embedserve prepare`: from a configuration file to a running service.

file → check settings and access → prepare the model → run the service on Ray
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.command.ports import port_in_use, with_free_ports
from serve_app.command.progress import print_step
from serve_app.command.ray_service import RayService
from serve_app.command.scratch_dir import ScratchDir, check_socket_paths, ray_temp_dir
from serve_app.command.service_process import StartupError
from serve_app.command.supervision import run_until_signal
from serve_app.config import USER_CONFIGS, AppConfig, IngressSettings
from serve_app.config.section import describe_errors
from serve_app.errors import ConfigurationError
from serve_app.model_prep.engine_selection import select_engine

_LOCAL_CONFIG = Path("serve_config.yaml")
_PACKAGED_CONFIG = Path(__file__).parents[1] / "serve_config.yaml"
_RAY_LOGS = "ray/session_latest/logs/serve"


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
    check_socket_paths()
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
        try:
            run_until_signal(
                RayService(config, verbose=arguments.verbose),
                drain_timeout_s=arguments.drain_timeout,
                until_eof=arguments.until_eof,
            )
        except StartupError as error:
            raise StartupError(f"{error}\nRay's logs: {ray_temp_dir() / _RAY_LOGS}") from None
    return 0


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
