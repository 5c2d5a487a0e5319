"""Processes of the service are killed or stopped by a signal."""

import signal
from collections.abc import Sequence

import psutil

from serve_app.command.process_tree import send_signal

from .fault import Fault, Scene

#: Deployments that exist in one topology only.
_TOPOLOGIES = {
    "Ingress": ("separate",),
    "CacheLookup": ("separate",),
    "Embedder": ("separate",),
    "EmbedServer": ("colocated",),
}


#: Why requests fail that a killed process takes along.
_REASONS = {
    "HAProxy": "The connections of clients end with HAProxy, and with them the requests in flight.",
}


class ProcessFault(Fault):
    """All processes of a name get a signal. Stopped ones go on when the fault ends."""

    def __init__(
        self, process: str, number: signal.Signals, duration_s: float, title: str = ""
    ) -> None:
        """A fault of processes.

        Args:
            process: one of `service_processes.NAMES`.
            number: SIGKILL or SIGSTOP.
            duration_s: how long stopped processes stay stopped; 0 for killed ones.
            title: the process as the table names it.
        """
        verb, past = ("kill", "killed") if number is signal.SIGKILL else ("stop", "stopped")
        self.name = f"{verb}-{process.lower()}"
        lasting = f" for {duration_s:.0f} s" if duration_s else ""
        self.description = f"{title or process} is {past}{lasting} ({number.name})"
        self.topologies = _TOPOLOGIES.get(process, Fault.topologies)
        self.duration_s = duration_s
        self._process, self._number = process, number
        if number is signal.SIGKILL:
            self.reason = _REASONS.get(process, "")
        self._hit: Sequence[psutil.Process] = ()

    def inject(self, scene: Scene) -> None:
        """Sends the signal."""
        self._hit = scene.service.processes(self._process)
        if not self._hit:
            raise RuntimeError(f"No process {self._process} runs.")
        send_signal(self._hit, self._number)

    def heal(self, scene: Scene) -> None:
        """Lets stopped processes go on, if Ray has not replaced them."""
        if self._number is signal.SIGSTOP:
            send_signal(self._hit, signal.SIGCONT)


_STOPPED_S = 8.0
_PROCESSES = {
    "Embedder": "",
    "Ingress": "",
    "CacheLookup": "",
    "EmbedServer": "",
    "ServeController": "Serve's controller",
    "HAProxy": "",
    "HAProxyManager": "Ray's manager of HAProxy",
    "ProxyGuard": "the guard of HAProxy's port",
    "Valkey": "",
}
FAULTS = [
    ProcessFault(process, number, duration_s, title)
    for process, title in _PROCESSES.items()
    for number, duration_s in ((signal.SIGKILL, 0.0), (signal.SIGSTOP, _STOPPED_S))
]
