"""The processes of a service, by the names that benchmarks give them."""

from collections.abc import Iterable
from contextlib import suppress

import psutil

#: How the command lines of processes begin, and the names of programs.
_TITLES = {
    "Ingress": "ray::ServeReplica:embedserve:Ingress",
    "CacheLookup": "ray::ServeReplica:embedserve:CacheLookup",
    "Embedder": "ray::ServeReplica:embedserve:Embedder",
    "EmbedServer": "ray::ServeReplica:embedserve:EmbedServer",
    "ServeController": "ray::ServeController",
    "ProxyActor": "ray::ProxyActor",
    "HAProxyManager": "ray::HAProxyManager",
    "dashboard agent": "ray::DashboardAgent",
}
_PROGRAMS = {"HAProxy": "haproxy", "Valkey": "valkey-server", "raylet": "raylet"}
#: Modules that run as processes of their own.
_MODULES = {"ProxyGuard": "serve_app.proxy.guard"}
#: The names that `select` knows.
NAMES = (*_TITLES, *_PROGRAMS, *_MODULES)


def select(processes: Iterable[psutil.Process], name: str) -> list[psutil.Process]:
    """Returns the processes of a name.

    Args:
        processes: those of a service.
        name: one of `NAMES`.
    """
    found = []
    for process in processes:
        with suppress(psutil.Error):
            command = process.cmdline()
            if name in _PROGRAMS:
                matches = process.name() == _PROGRAMS[name]
            elif name in _MODULES:
                matches = _MODULES[name] in command
            else:
                matches = bool(command) and command[0].startswith(_TITLES[name])
            if matches:
                found.append(process)
    return found
