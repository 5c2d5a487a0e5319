"""Clients that leave, stall, come by thousands or send far too much."""

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from .apis import MODEL
from .fault import Fault, Scene

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST instead of FIN
_POLL_S = 0.5
_CONNECT_TIMEOUT_S = 10.0


class ClientFault(Fault):
    """Many connections of other clients, in a thread, while the load goes on."""

    clients: int

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._missing = 0

    def inject(self, scene: Scene) -> None:
        """Starts the clients."""
        self._stopped.clear()
        self._missing = self.clients
        self._thread = threading.Thread(target=self._run_safely, args=(scene,), daemon=True)
        self._thread.start()

    def heal(self, scene: Scene) -> None:
        """Ends the clients and closes their connections.

        Raises:
            RuntimeError: some clients could not connect, or not in time.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._missing:
            raise RuntimeError(f"{self._missing} of {self.clients} clients did not connect.")

    def _run_safely(self, scene: Scene) -> None:
        with suppress(OSError):  # `heal` tells how many clients are missing
            self.run(scene)

    def connect(self, scene: Scene) -> socket.socket:
        """Connects another client."""
        connection = socket.create_connection(scene.service.address(), _CONNECT_TIMEOUT_S)
        self._missing -= 1
        return connection

    @contextmanager
    def connected(self, scene: Scene) -> Iterator[list[socket.socket]]:
        """Yields the connections of all clients."""
        with ExitStack() as stack:
            yield [stack.enter_context(self.connect(scene)) for _ in range(self.clients)]

    def run(self, scene: Scene) -> None:
        """Does what the clients do, until `self.wait` returns that the fault is over."""
        raise NotImplementedError

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the fault; returns whether it is over."""
        return self._stopped.wait(timeout_s)


class Disconnects(ClientFault):
    """Clients leave while their texts are computed."""

    name = "disconnects"
    clients = 200
    description = "200 clients send 16 texts each and reset the connection within 50 ms"

    def run(self, scene: Scene) -> None:
        """Opens and resets one connection after another."""
        rng = random.Random(self.name)
        for number in range(self.clients):
            texts = [f"leaving {number} {i} " + "word " * 60 for i in range(16)]
            with self.connect(scene) as connection, suppress(OSError):
                connection.sendall(_request(scene, texts))
                time.sleep(rng.uniform(0, 0.05))
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class SlowReaders(ClientFault):
    """Clients read their large replies slowly."""

    name = "slow-readers"
    clients = 50
    description = "50 clients read replies of 0.5 MB at 2 KB/s, for 10 s"
    duration_s = 10.0

    def run(self, scene: Scene) -> None:
        """Requests the same texts over all connections, and reads a little now and then."""
        texts = [f"slow reader {i}" for i in range(64)]
        with self.connected(scene) as connections:
            for connection in connections:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.sendall(_request(scene, texts))
            while not self.wait(_POLL_S):
                for connection in connections:
                    with suppress(OSError):
                        connection.recv(1024, socket.MSG_DONTWAIT)


class SlowWriters(ClientFault):
    """Clients send their bodies byte by byte."""

    name = "slow-writers"
    clients = 100
    description = "100 clients send two bytes of their bodies per second, for 10 s"
    duration_s = 10.0

    def run(self, scene: Scene) -> None:
        """Sends the headers over all connections, and then single bytes."""
        head, body = _request(scene, ["slow writer"]).split(b"\r\n\r\n")
        with self.connected(scene) as connections:
            for connection in connections:
                connection.sendall(head + b"\r\n\r\n")
            for byte in body:
                if self.wait(_POLL_S):
                    return
                for connection in connections:
                    with suppress(OSError):
                        connection.sendall(bytes([byte]))


class HalfOpen(ClientFault):
    """Clients fall silent."""

    name = "half-open"
    clients = 200
    description = (
        "200 clients fall silent: before, in and after the headers, and in the body; for 12 s"
    )
    duration_s = 12.0

    def run(self, scene: Scene) -> None:
        """Sends prefixes of a request, and nothing more."""
        request = _request(scene, ["half open"])
        head_end = request.index(b"\r\n\r\n") + 4
        prefixes = [b"", request[:40], request[:head_end], request[: head_end + 9]]
        with self.connected(scene) as connections:
            for number, connection in enumerate(connections):
                connection.sendall(prefixes[number % len(prefixes)])
            self.wait()


class ManyConnections(ClientFault):
    """Thousands of connections that have been used once."""

    name = "connections"
    clients = 2048
    description = "2,048 further connections are used once and stay open, for 10 s"
    duration_s = 10.0

    def run(self, scene: Scene) -> None:
        """Opens connections, asks each for the liveness, and keeps them."""
        ask = b"GET /v1/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with ExitStack() as stack:
            for _ in range(self.clients):
                connection = stack.enter_context(self.connect(scene))
                connection.sendall(ask)
            self.wait()


class Burst(Fault):
    """The load sends what it would send in ten seconds at once."""

    name = "burst"
    description = "250 requests more are sent at once"
    duration_s = 6.0

    def inject(self, scene: Scene) -> None:
        """Sends the requests."""
        scene.load.send_at_once(250)


def _request(scene: Scene, texts: list[str]) -> bytes:
    body = json.dumps({"model": MODEL, "input": texts}).encode()
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {scene.service.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


FAULTS: list[Fault] = [
    Disconnects(),
    SlowReaders(),
    SlowWriters(),
    HalfOpen(),
    Burst(),
    ManyConnections(),
]
