"""`embedserve deploy`: applies a changed configuration file to a running service.

file → check settings and access → Serve's controller → wait until every replica is up to date
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.command.application_status import describe_replicas, failure_reasons
from serve_app.command.cluster import add_address_argument, connect, use_token
from serve_app.command.config_file import add_config_argument, check_access, read_config
from serve_app.command.progress import print_step
from serve_app.errors import ConfigurationError, Unavailable

_POLL_S = 0.5


def add_commands(commands: Any) -> None:
    """Adds `deploy` to the parser."""
    deploy = commands.add_parser(
        "deploy",
        help="apply a configuration file to a running service",
        description="Check a configuration file, apply it to the service that runs on this "
        "machine's Ray cluster, and wait until the service is healthy again. `http_options` and "
        "`controller_options` apply at the next start only.",
    )
    add_config_argument(deploy)
    add_address_argument(deploy)
    deploy.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long to wait for the service to be healthy (default: 600)",
    )
    deploy.set_defaults(run=_deploy)


def _deploy(arguments: argparse.Namespace) -> int:
    use_token()  # before Ray is imported to check the file
    config, _ = read_config(arguments.config)
    check_access(config)
    serve = connect(arguments.address)

    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    try:
        client = _get_global_client()
        assert client is not None, "It raises without a controller. This is a bug in Ray."
        client.deploy_apps(schema)
    except RayServeException as error:
        raise ConfigurationError(
            f"No service runs on the Ray cluster ({error}). Start it with `embedserve serve`."
        ) from None
    started_at = time.monotonic()
    names = [application.name for application in schema.applications]
    reported = ""
    while not _is_running(applications := _applications(serve, names)):
        if time.monotonic() - started_at > arguments.timeout:
            raise Unavailable(
                f"The service was not healthy after {arguments.timeout:.0f} s. Waiting for: "
                f"{reported}. It goes on starting; `serve status` shows its state."
            )
        progress = _progress(applications)
        if progress != reported:
            reported = progress
            print_step("deploying", f"{progress} ({time.monotonic() - started_at:.0f} s)")
        time.sleep(_POLL_S)
    print_step("deployed", f"{', '.join(names)} ({time.monotonic() - started_at:.0f} s)")
    return 0


def _applications(serve: Any, names: list[str]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the status of each application.

    Raises:
        ConfigurationError: an application failed; the message says why.
    """
    running = serve.status().applications
    applications = {name: asdict(running[name]) for name in names if name in running}
    for application in applications.values():
        if application["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConfigurationError(
                f"The service can't run this configuration:\n{failure_reasons(application)}"
            )
    return applications


def _is_running(applications: Mapping[str, Mapping[str, Any]]) -> bool:
    return bool(applications) and all(a["status"] == "RUNNING" for a in applications.values())


def _progress(applications: Mapping[str, Mapping[str, Any]]) -> str:
    states = {
        name: deployment["replica_states"]
        for application in applications.values()
        for name, deployment in application["deployments"].items()
    }
    return describe_replicas(states) if states else "the application"
