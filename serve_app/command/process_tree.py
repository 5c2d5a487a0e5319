"""The processes that a service consists of: finding, signaling and ending them."""

import os
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

import psutil

from serve_app.valkey.supervisor import SHUTDOWN_TIMEOUT_S, parse_owner_pid

_POLL_S = 0.1
_KILL_TIMEOUT_S = 3.0


def session_processes(session_id: int) -> list[psutil.Process]:
    """Returns the processes of a session, which contains orphaned ones too."""
    return [process for process in psutil.process_iter() if _session(process) == session_id]


def cache_servers(owner_pids: Collection[int]) -> list[psutil.Process]:
    """Returns the cache servers that these processes own, and the servers' supervisors.

    A supervisor is no child of its owner, so that it survives a replica. It exits on its own soon
    after its owner.
    """
    servers = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if parse_owner_pid(process.cmdline()) in owner_pids:
                servers += [process, *process.children()]
    return servers


def stop_cache_servers(owner_pids: Collection[int]) -> None:
    """Ends the cache servers that these processes own, and waits until their data is saved."""
    servers = cache_servers(owner_pids)
    send_signal(servers, signal.SIGTERM)
    wait_or_kill(servers, SHUTDOWN_TIMEOUT_S + _KILL_TIMEOUT_S)


def process_name(process: psutil.Process) -> str:
    """Returns the name of a process; empty if it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def command_line(process: psutil.Process) -> list[str]:
    """Returns the command line of a process; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def is_running(process: psutil.Process) -> bool:
    """Returns whether a process runs. A zombie doesn't: it has exited but is still listed."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def send_signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Sends a signal to each process that has not ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def have_exited(processes: Sequence[psutil.Process], timeout_s: float) -> bool:
    """Waits for processes to exit, and returns whether all have."""
    deadline = time.monotonic() + timeout_s
    while any(map(is_running, processes)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def wait_or_kill(processes: Sequence[psutil.Process], timeout_s: float) -> None:
    """Waits for processes that are about to exit, and kills those that don't."""
    with suppress(KeyboardInterrupt):
        have_exited(processes, timeout_s)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, _KILL_TIMEOUT_S)


def _session(process: psutil.Process) -> int | None:
    """Returns the id of a process's session; None if the process has ended."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return None
