"""The TCP ports of a service: finding one that is in use, and moving all of them."""

import copy
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HAPROXY_SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
#: Ports that HAProxy and its fallback proxy open in addition to the HTTP port, with defaults.
_HAPROXY_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}


#: Between the ports of Ray's workers and Linux's ephemeral ports.
_FREE_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """Returns a port on which no process listens.

    It is no ephemeral port: the kernel could give such a port to one of Ray's processes before the
    service listens on it.
    """
    ports = random.SystemRandom().sample(_FREE_PORTS, len(_FREE_PORTS))
    return next(port for port in ports if is_free("127.0.0.1", port))


def port_in_use(config: Mapping[str, Any]) -> int | None:
    """Returns a port of the service on which another process listens; None: all are free."""
    http = config.get("http_options", {})
    ports = [http.get("port", 8000)]
    env = _serve_env(config)
    if env.get(_HAPROXY_SWITCH) == "1":
        ports += [int(env.get(name, default)) for name, default in _HAPROXY_PORTS.items()]
    return next((p for p in ports if not is_free(http.get("host", "0.0.0.0"), p)), None)


def with_free_ports(config: Mapping[str, Any], port: int, scratch: Path) -> dict[str, Any]:
    """Returns a copy of a configuration that runs next to other services on this machine.

    Args:
        config: the content of a configuration file.
        port: the HTTP port.
        scratch: directory for HAProxy's files. HAProxy's other ports and its admin socket move too.
    """
    moved: dict[str, Any] = copy.deepcopy(dict(config))
    moved.setdefault("http_options", {})["port"] = port
    env = _serve_env(moved)
    if env.get(_HAPROXY_SWITCH) == "1":
        env |= {name: str(free_port()) for name in _HAPROXY_PORTS}
        env["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] = str(scratch / "haproxy.cfg")
        env["RAY_SERVE_HAPROXY_SOCKET_PATH"] = str(scratch / "admin.sock")
        env["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(scratch)
        env["RAY_SERVE_HAPROXY_SERVER_STATE_FILE"] = str(scratch / "server-state")
    return moved


def _serve_env(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variables of Ray Serve in a configuration, not a copy of them."""
    runtime_env = config.get("controller_options", {}).get("runtime_env", {})
    env: dict[str, str] = runtime_env.get("env_vars", {})
    return env


def is_free(host: str, port: int) -> bool:
    """Returns whether no process listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
