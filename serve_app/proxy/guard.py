"""Keeps the port of HTTP open while HAProxy is replaced. It runs as a process of its own.

HAProxy inherits the listening socket from the guard, so that the kernel accepts connections even
while no HAProxy runs. Ray notices the death of HAProxy, or of its actor that manages HAProxy, only
after some seconds:

- HAProxy ends without a successor → the guard starts a stand-in with the same configuration.
- The actor ends → its HAProxy goes on.
- Ray's next HAProxy has started → the guard names the processes that it ends in its turn.
- Ray's node ends, or no next HAProxy comes → the guard ends every HAProxy and exits.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from serve_app.parent_death import die_with_parent
from serve_app.proxy.haproxy_config import LISTENER_VARIABLE, without_admin_socket
from serve_app.proxy.launch import Launch, admin_socket_pid, saved_config

#: Ray replaces its actor within about ten seconds, and within 75 s on a machine under heavy load.
_SUCCESSOR_TIMEOUT_S = 120.0
#: Stand-ins that end at once are not started for ever.
_MAX_STAND_INS = 5
_BACKLOG = 4096  # HAProxy's own, if the kernel allows so many


class Guard:
    """The listening socket of HTTP, and the processes that use it and decide on it."""

    def __init__(self, control: socket.socket) -> None:
        """A guard that holds no listening socket yet.

        Args:
            control: a listening Unix socket, to which launchers connect.
        """
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._on_connection)
        self._listener: socket.socket | None = None
        self._address: tuple[str, int] | None = None
        self._launch: Launch | None = None
        self._managers: dict[int, int] = {}  #: pid of each HAProxy of Ray's → that of its manager
        self._stand_in: subprocess.Popen[bytes] | None = None
        self._stand_ins = 0
        self._watched: set[int] = set()
        self._deadline_s: float | None = None
        self._is_over = False

    def run(self) -> None:
        """Serves launchers and watches processes until the guard is not needed any more."""
        while not self._is_over:
            timeout_s = None if self._deadline_s is None else self._deadline_s - time.monotonic()
            if timeout_s is not None and timeout_s <= 0:
                self._end("Ray started no other HAProxy")
                return
            for key, _ in self._selector.select(timeout_s):
                key.data()

    def _on_connection(self) -> None:
        connection, _ = self._control.accept()
        with connection, suppress(OSError, ValueError):
            self._serve(connection)
        if self._launch is None:  # the launcher goes on without a guard
            self._is_over = True

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(1)
        launch = Launch.receive(connection)
        listener = self._listener
        if launch.address not in (None, self._address):
            listener = _listen(launch)
        if listener is None:
            return
        displaced = [p for p, manager in self._managers.items() if manager != launch.manager]
        displaced += [pid for pid in launch.replaces if pid not in self._managers]
        if self._stand_in is not None:
            displaced.append(self._stand_in.pid)
        launch.reply(connection, displaced, listener)
        # A launcher that has left doesn't get here: nobody would accept from the socket.
        self._follow(launch, listener)

    def _follow(self, launch: Launch, listener: socket.socket) -> None:
        if self._listener not in (None, listener):
            self._listener.close()
        self._listener = listener
        self._address = launch.address or self._address
        self._launch, self._deadline_s, self._stand_ins = launch, None, 0
        self._managers[launch.pid] = launch.manager
        self._watch(launch.node, partial(self._end, "Ray's node has ended"))
        self._watch(launch.manager, partial(self._on_manager_end, launch.manager))
        self._watch(launch.pid, partial(self._on_proxy_end, launch.pid))

    def _watch(self, pid: int, on_end: Callable[[], None]) -> None:
        if pid in self._watched:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            on_end()
            return
        self._watched.add(pid)

        def end() -> None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            self._watched.discard(pid)
            on_end()

        self._selector.register(descriptor, selectors.EVENT_READ, end)

    def _on_manager_end(self, manager: int) -> None:
        if self._launch is not None and self._launch.manager == manager:
            self._deadline_s = time.monotonic() + _SUCCESSOR_TIMEOUT_S

    def _on_proxy_end(self, pid: int) -> None:
        self._managers.pop(pid, None)
        if self._stand_in is not None and self._stand_in.pid == pid:
            self._stand_in.wait()
            self._stand_in = None
        if self._stand_in is None and not self._is_over and not self._is_replaced():
            self._start_stand_in()

    def _is_replaced(self) -> bool:
        """Whether Ray has started another HAProxy in place of one that has ended."""
        assert self._launch is not None, "A HAProxy was launched. This is a bug."
        with suppress(OSError):
            config = self._launch.config_file.read_text(encoding="utf-8")
            return admin_socket_pid(config) is not None
        return False

    def _start_stand_in(self) -> None:
        assert self._launch is not None, "A HAProxy was launched. This is a bug."
        assert self._listener is not None, "A launch comes with a listener. This is a bug."
        self._stand_ins += 1
        file = self._launch.config_file.with_name("stand-in.cfg")
        try:
            # Without the admin socket, Ray finds that its HAProxy has ended, and replaces it.
            file.write_text(without_admin_socket(saved_config(self._launch.config_file)), "utf-8")
        except OSError:  # HAProxy never ran with an application
            self._stand_ins = _MAX_STAND_INS + 1
        if self._stand_ins > _MAX_STAND_INS:
            self._end("no HAProxy runs with this configuration")
            return
        descriptor = self._listener.fileno()
        self._stand_in = subprocess.Popen(
            self._launch.command_of(file),
            env={**os.environ, LISTENER_VARIABLE: str(descriptor)},
            pass_fds=[descriptor],
            preexec_fn=die_with_parent(signal.SIGUSR1),
        )
        _log(f"HAProxy has ended; process {self._stand_in.pid} stands in for it")
        self._watch(self._stand_in.pid, partial(self._on_proxy_end, self._stand_in.pid))

    def _end(self, reason: str) -> None:
        """Ends every HAProxy after its requests in flight."""
        self._is_over = True
        stand_in = [] if self._stand_in is None else [self._stand_in.pid]
        for pid in [*self._managers, *stand_in]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        _log(f"{reason}; the port is closed")


def _listen(launch: Launch) -> socket.socket | None:
    """Returns a listening socket of the address; None if it can't be bound: HAProxy says why."""
    assert launch.address is not None, "The caller has checked it. This is a bug."
    host, port = launch.address
    try:
        family, *_, address = socket.getaddrinfo(
            None if host in ("", "*") else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The HAProxies of a guard that has been killed hold its socket of this port.
        if launch.shares_port or launch.replaces:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # for the next guard
        listener.listen(_BACKLOG)
    except OSError:
        return None
    return listener


def _log(message: str) -> None:
    with suppress(OSError):
        print(f"embedserve-haproxy: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Runs a guard on the control socket whose descriptor is the first argument.

    The second one is the path of the socket, for those who list processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # closes the listening socket
    Guard(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
