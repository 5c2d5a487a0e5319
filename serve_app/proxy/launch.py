"""What a launcher of HAProxy tells the guard, and what it gets.

launcher → its process, its parents, the address → guard → listening socket, processes to end
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

_REPLY_TIMEOUT_S = 5.0
_MAX_MESSAGE = 65_536
_CONTROL = "guard.sock"
_ADMIN_SOCKET = re.compile(r"^    stats socket (\S+)", re.MULTILINE)


class Launch(NamedTuple):
    """A HAProxy that is about to start."""

    pid: int
    manager: int  #: pid of Ray's actor that starts HAProxy
    node: int  #: pid of the actor's parent, the node of Ray
    binary: str
    config_file: Path
    address: tuple[str, int] | None  #: host and port of HTTP; None if the configuration has none
    shares_port: bool  #: whether any other process of the user may bind the port
    replaces: list[int]  #: processes of HAProxy that this one ends; they may hold the port

    def to_guard(self) -> tuple[socket.socket, list[int]] | None:
        """Announces this process; returns the listening socket and the processes to end.

        Starts a guard if none runs. Returns None if there can't be one.
        """
        if not hasattr(os, "pidfd_open"):
            return None
        path = str(self.config_file.with_name(_CONTROL))
        with (
            suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        ):
            connection.settimeout(_REPLY_TIMEOUT_S)
            try:
                connection.connect(path)
            except OSError:
                _start_guard(path)
                connection.connect(path)
            message = {**self._asdict(), "config_file": str(self.config_file)}
            connection.sendall(json.dumps(message).encode())
            reply, descriptors, *_ = socket.recv_fds(connection, _MAX_MESSAGE, 1)
            if descriptors:
                return socket.socket(fileno=descriptors[0]), json.loads(reply)
        return None

    @classmethod
    def receive(cls, connection: socket.socket) -> Self:
        """Receives a launch.

        Raises:
            OSError: the launcher has left, or sends nothing.
            ValueError: it sent something else.
        """
        message = json.loads(connection.recv(_MAX_MESSAGE))
        address = message.pop("address")
        file = Path(message.pop("config_file"))
        return cls(**message, config_file=file, address=address and (address[0], address[1]))

    def reply(
        self, connection: socket.socket, displaced: Sequence[int], listener: socket.socket
    ) -> None:
        """Sends the listening socket, and the processes that the new HAProxy ends.

        Raises:
            OSError: the launcher has left.
        """
        socket.send_fds(connection, [json.dumps(displaced).encode()], [listener.fileno()])

    def command_of(self, config_file: Path) -> list[str]:
        """Returns the command that starts the same HAProxy with another configuration file."""
        port = [] if self.shares_port else ["-dR"]
        return [self.binary, "-dS", "-db", *port, "-f", str(config_file)]


def admin_socket_pid(config: str) -> int | None:
    """Returns the process that answers the admin socket of a configuration; None if none does."""
    path = _ADMIN_SOCKET.search(config)
    if path is None:
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(path[1])
        connection.sendall(b"show info\n")
        with connection.makefile("rb") as answer:
            pid = re.search(rb"^Pid: (\d+)$", answer.read(), re.MULTILINE)
            return None if pid is None else int(pid[1])
    return None


def save_config(file: Path, config: str) -> None:
    """Saves a configuration with an application next to the file that Ray overwrites."""
    _saved(file).write_text(config, encoding="utf-8")


def saved_config(file: Path) -> str:
    """Returns the last configuration with an application.

    Raises:
        OSError: there was none.
    """
    return _saved(file).read_text(encoding="utf-8")


def _saved(file: Path) -> Path:
    return file.with_name(f"last-{file.name}")


def _start_guard(path: str) -> None:
    """Starts a guard on a control socket. It is no child of HAProxy, which this process becomes.

    Raises:
        OSError: the socket can't be created.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.bind(path)
        os.chmod(path, 0o600)
        control.listen()
        if os.fork() == 0:
            try:
                subprocess.Popen(
                    [sys.executable, "-m", "serve_app.proxy.guard", str(control.fileno()), path],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[control.fileno()],
                    process_group=0,  # Ctrl-C in a terminal doesn't reach it
                )
            finally:
                os._exit(0)
        os.wait()
