"""`embedserve serve`: from a configuration file to a running service.

file → check settings and access → prepare the models → run the service on Ray
"""

import argparse
from typing import Any

from serve_app.command.config_file import add_config_argument, check_access, read_config
from serve_app.command.logs import add_log_arguments, apply_log_arguments
from serve_app.command.ports import port_in_use, with_free_ports
from serve_app.command.prepare import prepare_models
from serve_app.command.ray_service import RayService
from serve_app.command.scratch_dir import ScratchDir, check_socket_paths, ray_temp_dir
from serve_app.command.service_process import StartupError
from serve_app.command.supervision import run_until_signal

_RAY_LOGS = "ray/session_latest/logs/serve"


def add_commands(commands: Any) -> None:
    """Adds `serve` to the parser."""
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
    serve.add_argument(
        "--standalone",
        action="store_true",
        help="run the service in this process, without Ray: it starts in seconds and needs a "
        "fraction of the memory, but has no replicas; for laptops, sidecars and CI. The settings "
        "of Ray in the file are ignored",
    )
    serve.add_argument("--verbose", action="store_true", help="print Ray's output")
    add_log_arguments(serve)
    serve.add_argument(
        "--until-eof",
        action="store_true",
        help="stop at the end of standard input, so that the service doesn't outlive the program "
        "that started it",
    )
    serve.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    if arguments.standalone:
        from serve_app.command.standalone import serve_standalone  # imports the HTTP server

        return serve_standalone(arguments)
    config, application = read_config(arguments.config)
    config = apply_log_arguments(config, arguments)
    check_access(config)
    check_socket_paths()
    prepare_models(application)
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
