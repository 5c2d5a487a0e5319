"""`embedserve deploy`: applies a changed configuration file to a running service.

file → check settings and access → prepare the models → Serve's controller, started if none runs →
wait until every replica is up to date, or restore the previous configuration
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from serve_app.command.application_status import describe_replicas, failure_reasons
from serve_app.command.cluster import (
    add_address_argument,
    connect,
    count_machines,
    single_machine_settings,
    use_token,
)
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
        "`controller_options` apply at the next start only. On a cluster without a service this "
        "starts one, which `serve shutdown` stops.",
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
    if (machines := count_machines()) > 1:
        for warning in single_machine_settings(config):
            print_step("warning", f"the cluster has {machines} machines, and {warning}")
    prepare_models(application)  # before replicas that run are replaced

    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    client = _connect_to_controller(schema)
    previous = _running_config(client.get_serve_details())
    client.deploy_apps(schema)
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


def _connect_to_controller(schema: Any) -> Any:
    """Returns Ray's client of the controller, which is started if the cluster has none."""
    from ray.exceptions import RayActorError
    from ray.serve._private.api import serve_start

    def start() -> Any:
        return serve_start(
            http_options=schema.http_options.model_dump(),
            grpc_options=schema.grpc_options.model_dump(),
            global_logging_config=schema.logging_config,
            controller_options=schema.controller_options,
            proxy_location=schema.proxy_location,
        )

    try:
        return start()
    except (RayActorError, TimeoutError):
        # The controller runs, and replaces a proxy that starts slowly: the second call finds it.
        return start()


def _running_config(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the configuration of the applications; None: one of them doesn't run, or none do."""
    applications = [*details["applications"].values()]
    if not applications:
        return None
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
