"""Where other machines of a cluster reach an embedded server."""

import contextlib
import socket
from pathlib import Path
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError, ResponseError

_TIMEOUT_S = 5.0
_MAX_ATTEMPTS = 5


class ServerAddress(NamedTuple):
    """An address, and the password that opens the server. Its `repr` leaves the password out."""

    host: str
    port: int
    password: str

    def __repr__(self) -> str:
        return f"ServerAddress({self.host}:{self.port})"


def open_port(socket_path: Path, password: str, host: str) -> ServerAddress:
    """Opens a free port of the server on this machine's address `host`, unless one is open. Blocks.

    From then on, new connections need the password, those to the unix socket as well. A server that
    is restarted has no port until the next call.

    Raises:
        OSError: the server doesn't answer, or can't listen on this address.
    """
    with Redis(
        unix_socket_path=str(socket_path),
        username="default",
        password=password,
        socket_timeout=_TIMEOUT_S,
        protocol=2,
        driver_info=None,
    ) as server:
        try:
            for _ in range(_MAX_ATTEMPTS):
                if port := int(server.config_get("port")["port"]):
                    return ServerAddress(host, port, password)
                server.config_set("requirepass", password)  # no port is open without it
                server.config_set("bind", host)
                with contextlib.suppress(ResponseError):  # another process has taken the port
                    server.config_set("port", _free_port(host))
        except RedisError as error:
            raise OSError(f"The cache server opens no port on {host}: {error}") from error
    raise OSError(f"The cache server finds no free port on {host}.")


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
