"""The processes of a worker, and the signals that stop them, on POSIX systems and on Windows.

No other module of `embedserve run` calls what only one of these systems has.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import psutil

from serve_app.command import process_tree

if sys.platform == "win32":
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGBREAK)
    #: Arguments of `Popen`: Ctrl-C in the console reaches this process only.
    POPEN_OPTIONS: dict[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}

    def group_processes(leader_pid: int) -> list[psutil.Process]:
        """Returns a process and its descendants; empty if the process has ended."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(leader_pid)
            return [leader, *leader.children(recursive=True)]
        return []

    def send_stop(leader_pid: int, number: signal.Signals) -> None:
        """Sends Ctrl-Break to a process and its descendants, whatever the signal is."""
        with suppress(OSError):
            os.kill(leader_pid, signal.CTRL_BREAK_EVENT)

else:
    STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    #: Arguments of `Popen`: Ctrl-C in the terminal reaches this process only.
    POPEN_OPTIONS: dict[str, Any] = {"start_new_session": True}

    def group_processes(leader_pid: int) -> list[psutil.Process]:
        """Returns the processes of the session that a process has started, orphans included."""
        return process_tree.session_processes(leader_pid)

    def send_stop(leader_pid: int, number: signal.Signals) -> None:
        """Sends a signal to each process of the session that a process has started."""
        process_tree.send_signal(group_processes(leader_pid), number)
