"""How many replicas HAProxy sends requests to, as its admin socket says."""

import csv
import socket
from pathlib import Path

_TIMEOUT_S = 2.0


class HAProxyServers:
    """Asks the HAProxy whose admin socket is in a subfolder of the service's own one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self) -> int | None:
        """Returns the number of replicas in its configuration; None: it doesn't answer."""
        try:
            reply = self._ask(b"show stat\n")
        except OSError:
            return None
        rows = csv.DictReader(reply.removeprefix("# ").splitlines())
        # The backup is Ray's own proxy. Backends of reads have the same servers again.
        servers = [
            row
            for row in rows
            if row["pxname"].startswith("http-") and not row["pxname"].endswith("-reads")
            if row["act"] == "1" and row["svname"] != "BACKEND"
        ]
        return len(servers)

    def _ask(self, command: bytes) -> str:
        path = next(self._folder.glob("*/admin.sock"), None)
        if path is None:
            raise FileNotFoundError("There is no admin socket yet.")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(command)
            with connection.makefile() as reply:
                return reply.read()
