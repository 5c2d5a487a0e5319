"""The connection of a command to the Ray cluster of a running service."""

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.access.entrance import is_loopback
from serve_app.command.config_file import http_address
from serve_app.errors import ConfigurationError


def add_address_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the address of the Ray cluster."""
    parser.add_argument(
        "--address",
        default="auto",
        help="address of the Ray cluster (default: the one on this machine)",
    )


def connect(address: str) -> Any:
    """Returns Ray Serve, connected to a running cluster.

    Raises:
        ConfigurationError: no cluster runs at the address.
    """
    use_token()
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"No Ray cluster at {address!r} ({error}). Start the service first, on this machine "
            "or on another one of its Ray cluster. The command can't reach a service that runs "
            "with `--standalone`: restart that to change its settings, read the counters of its "
            "cache at `/metrics`, and fill the cache with `embedserve cache warm --url`."
        ) from None
    return serve


def count_machines() -> int:
    """Returns how many machines the cluster has; call `connect` before."""
    import ray

    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def free_resources() -> dict[str, dict[str, float]]:
    """Returns the resources of each machine that no replica has; call `connect` before."""
    # Ray's public function adds up all machines, on none of which a replica may fit.
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return free


def single_machine_settings(config: Mapping[str, Any]) -> list[str]:
    """Returns what a configuration sets that doesn't fit to several machines, with the remedies."""
    host, _ = http_address(config)
    if config.get("proxy_location") == "Disabled" or not is_loopback(host):
        return []
    return [
        f"HAProxy reaches no replica on another machine, since they listen on {host}: set "
        "`http_options.host: 0.0.0.0`"
    ]


def use_token() -> None:
    """Makes Ray send the token of this user's clusters, if there is one.

    Ray creates the token for a cluster that it starts on its own, but sends it to an address that
    is given only if `RAY_AUTH_MODE` says so. It reads the variable when it is imported.
    """
    token = Path.home() / ".ray" / "auth_token"
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
