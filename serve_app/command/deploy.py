"""`embedserve deploy`: applies a changed configuration file to a running service.

file → check settings, access and code → prepare the models → load them once on the cluster →
Serve's controller, started if none runs → wait until every replica is up to date, or return to the
configuration before
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from serve_app.autoscale.cluster_room import count_fitting
from serve_app.command.cluster import (
    add_address_argument,
    connect,
    count_machines,
    free_resources,
    single_machine_settings,
    use_token,
)
from serve_app.command.config_file import (
    add_config_argument,
    check_access,
    read_config,
    unknown_canary_keys,
)
from serve_app.command.engine_trial import EngineTrial, replaced_engines, try_engines
from serve_app.command.import_check import check_import
from serve_app.command.prepare import prepare_models
from serve_app.command.progress import print_step
from serve_app.command.rollout import Rollout, RolloutState, returnable_config
from serve_app.command.serve_controller import ServeController
from serve_app.command.surge import with_surge
from serve_app.errors import ConfigurationError, EmbedServeError, Unavailable

_POLL_S = 0.5


class Controller(Protocol):
    """What a roll-out needs of Ray Serve's controller."""

    def details(self) -> dict[str, Any]:
        """Returns Ray's description of the applications."""

    def apply(self, config: Mapping[str, Any]) -> None:
        """Lets the controller bring the cluster to a configuration, and returns at once."""


def add_commands(commands: Any) -> None:
    """Adds `deploy` to the parser."""
    deploy = commands.add_parser(
        "deploy",
        help="apply a configuration file to a running service",
        description="Check a configuration file, prepare its models, apply it to the service that "
        "runs on this machine's Ray cluster, and wait until every replica is up to date. If that "
        "fails or takes too long, the service returns to the configuration before. "
        "`http_options` and `controller_options` apply at the next start only. On a cluster "
        "without a service this starts one, which `serve shutdown` stops. A service that runs with "
        "`--standalone` has no roll-outs: restart it.",
        epilog="Exit status: 0 if the configuration is deployed, 1 if it isn't and the service is "
        "as before, or as the message says; 2 if the command line is wrong.",
    )
    add_config_argument(deploy)
    add_address_argument(deploy)
    deploy.add_argument(
        "--timeout",
        type=_positive_seconds,
        default=600.0,
        metavar="SECONDS",
        help="how long the roll-out may take, without the preparation of models, before the "
        "service returns to the configuration before (default: 600)",
    )
    deploy.set_defaults(run=_deploy)


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return seconds


def _deploy(arguments: argparse.Namespace) -> int:
    use_token()  # before Ray is imported to check the file
    config, application = read_config(arguments.config)
    check_access(config)
    for warning in unknown_canary_keys(config, application):
        print_step("warning", warning)
    for entry in config["applications"]:
        check_import(entry)
    connect(arguments.address)
    if (machines := count_machines()) > 1:
        for warning in single_machine_settings(config):
            print_step("warning", f"the cluster has {machines} machines, and {warning}")
    prepare_models(application)  # before replicas that run are replaced
    seconds = roll_out(
        ServeController(config), config, arguments.timeout, free_resources, try_engines
    )
    names = ", ".join(entry["name"] for entry in config["applications"])
    print_step("deployed", f"{names} ({seconds:.0f} s)")
    return 0


def roll_out(
    controller: Controller,
    config: Mapping[str, Any],
    timeout_s: float,
    free: Callable[[], Mapping[str, Mapping[str, float]]],
    try_engines: EngineTrial,
) -> float:
    """Deploys a configuration and waits until it runs; returns how many seconds that took.

    Args:
        controller: Ray Serve's.
        config: the content of a configuration file.
        timeout_s: how long it may take, and how long the return may take.
        free: returns the free resources of each machine.
        try_engines: loads the engines of a deployment once, on the cluster.

    Raises:
        ConfigurationError: it can't run, and the configuration before runs still or again, or there
            was none; the message says why.
        Unavailable: it wasn't deployed within the time limit, with the same consequence; or the
            controller doesn't answer.
    """
    started_at = time.monotonic()
    before = controller.details()
    previous = returnable_config(before)
    surging, without_room = with_surge(config, before, free())
    if without_room:
        print_step(
            "warning",
            f"no machine has room for another replica of {' and '.join(without_room)}: the "
            "replicas that run stop first, and requests wait until new ones have started",
        )
    for name, resources in replaced_engines(config, before).items():
        if count_fitting(resources, free(), {}) >= 1:
            print_step("trying", f"the models of {name} are loaded once on the cluster")
            try_engines(config["applications"][0], name, resources, timeout_s)
    try:
        controller.apply(surging)
        _wait(controller, Rollout(before, _names(config)), timeout_s)
    except EmbedServeError as error:
        if previous is None:
            raise type(error)(
                f"{error}\nThere is no configuration to return to: none ran before."
            ) from None
        _return_to(controller, previous, timeout_s, error)
    except KeyboardInterrupt:
        print_step("stopped", "Ray goes on with the roll-out; `serve status` shows its state")
        raise
    return time.monotonic() - started_at


class _Superseded(ConfigurationError):
    """Somebody else deployed another configuration during the roll-out."""


def _return_to(
    controller: Controller, previous: Mapping[str, Any], timeout_s: float, error: EmbedServeError
) -> None:
    """Deploys the configuration before, and raises the error that made that necessary."""
    if isinstance(error, _Superseded):
        raise error
    print_step("failed", "the configuration that ran before is deployed again")
    try:
        before = controller.details()
        controller.apply(previous)
        _wait(controller, Rollout(before, _names(previous)), timeout_s)
    except EmbedServeError as second:
        raise type(error)(f"{error}\nThe configuration before it doesn't run: {second}") from None
    raise type(error)(f"{error}\nThe configuration before it runs again.") from None


def _wait(controller: Controller, rollout: Rollout, timeout_s: float) -> None:
    """Prints the progress until the roll-out has ended well.

    Raises:
        ConfigurationError: it failed, or somebody else deployed another configuration.
        Unavailable: it takes longer than `timeout_s`.
    """
    started_at = time.monotonic()
    reported: list[str] = []
    reasons = ""
    while True:
        elapsed_s = time.monotonic() - started_at
        try:
            details = controller.details()
        except Unavailable as error:  # a controller that restarts goes on with the roll-out
            reasons = str(error)
        else:
            state, lines = rollout.state(details), rollout.progress(details)
            reasons = rollout.reasons(details)
            for line in lines:
                if line not in reported:
                    print_step("deploying", f"{line} ({elapsed_s:.0f} s)")
            reported = lines
            if state is RolloutState.DEPLOYED:
                return
            if state is RolloutState.SUPERSEDED:
                raise _Superseded("Another configuration was deployed meanwhile, and goes on.")
            if state is RolloutState.FAILED:
                raise ConfigurationError(f"The service can't run this configuration:\n{reasons}")
        if elapsed_s > timeout_s:
            state_text = "\n".join([*reported, *([reasons] if reasons else [])])
            raise Unavailable(
                f"The configuration was not deployed within {timeout_s:g} s:\n{state_text}"
            )
        time.sleep(_POLL_S)


def _names(config: Mapping[str, Any]) -> list[str]:
    return [application["name"] for application in config["applications"]]
