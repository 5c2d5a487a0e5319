"""`embedserve deploy`: applies a changed configuration file to a running service.

file → check settings and access → prepare the models → Serve's controller → wait until every
replica is up to date, or restore the previous configuration
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.command.application_status import describe_replicas, failure_reasons
from serve_app.command.cluster import add_address_argument, connect, use_token
from serve_app.command.config_file import add_config_argument, check_access, read_config
from serve_app.command.prepare import prepare_models
from serve_app.command.progress import print_step
from serve_app.errors import ConfigurationError, Unavailable

_POLL_S = 0.5


def add_commands(commands: Any) -> None:
    """Adds `deploy` to the parser."""
    deploy = commands.add_parser(
        "deploy",
        help="apply a configuration file to a running service",
        description="Check a configuration file, prepare its models, apply it to the service that "
        "runs on this machine's Ray cluster, and wait until the service is healthy again. If it "
        "can't run, the configuration before it is deployed again. `http_options` and "
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
    config, application = read_config(arguments.config)
    check_access(config)
    serve = connect(arguments.address)
    prepare_models(application)  # before replicas that run are replaced

    from ray.serve.context import _get_global_client
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    try:
        client = _get_global_client()
        assert client is not None, "It raises without a controller. This is a bug in Ray."
        previous = _running_config(client.get_serve_details())
        client.deploy_apps(schema)
    except RayServeException as error:
        raise ConfigurationError(
            f"No service runs on the Ray cluster ({error}). Start it with `embedserve serve`."
        ) from None
    started_at = time.monotonic()
    names = [application.name for application in schema.applications]
    try:
        _wait_until_running(serve, names, arguments.timeout)
    except ConfigurationError as error:
        if previous is None:
            raise
        print_step("failed", "the configuration that ran before is deployed again")
        client.deploy_apps(ServeDeploySchema.model_validate(previous))
        _wait_until_running(serve, [*serve.status().applications], arguments.timeout)
        raise ConfigurationError(f"{error}\nThe configuration before it runs again.") from None
    print_step("deployed", f"{', '.join(names)} ({time.monotonic() - started_at:.0f} s)")
    return 0


def _running_config(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the configuration of the applications; None: one of them doesn't run."""
    applications = [*details["applications"].values()]
    configs = [application.get("deployed_app_config") for application in applications]
    if not all(a["status"] == "RUNNING" for a in applications) or not all(configs):
        return None
    return {"applications": configs}


def _wait_until_running(serve: Any, names: list[str], timeout_s: float) -> None:
    """Prints the progress until every replica is up to date.

    Raises:
        ConfigurationError: an application failed; the message says why.
        Unavailable: it takes longer than `timeout_s`.
    """
    started_at = time.monotonic()
    reported = ""
    while not _is_running(applications := _applications(serve, names)):
        if time.monotonic() - started_at > timeout_s:
            raise Unavailable(
                f"The service was not healthy after {timeout_s:.0f} s. Waiting for: "
                f"{reported}. It goes on starting; `serve status` shows its state."
            )
        progress = _progress(applications)
        if progress != reported:
            reported = progress
            print_step("deploying", f"{progress} ({time.monotonic() - started_at:.0f} s)")
        time.sleep(_POLL_S)


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
