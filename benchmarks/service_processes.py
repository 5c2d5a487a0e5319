"""The processes of a service, by the names that benchmarks give them."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import PurePath

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
            if _matches(name, process.name(), process.cmdline()):
                found.append(process)
    return found


def role(process: psutil.Process) -> str:
    """Returns a name of `NAMES`, or else the title, the module, the script or the program.

    Raises:
        psutil.Error: the process has ended, or belongs to another user.
    """
    program, command = process.name(), process.cmdline()
    for name in NAMES:
        if _matches(name, program, command):
            return name
    if command and command[0].startswith("ray::"):
        return command[0].removeprefix("ray::").split(":")[0].split()[0]
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    scripts = [part for part in command[1:] if part.endswith(".py")]
    return PurePath(scripts[0]).name if scripts else program


def _matches(name: str, program: str, command: Sequence[str]) -> bool:
    if name in _PROGRAMS:
        return program == _PROGRAMS[name]
    if name in _MODULES:
        return _MODULES[name] in command
    return bool(command) and command[0].startswith(_TITLES[name])
