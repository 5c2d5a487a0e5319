"""Libraries that are measured in process: a JSON line with texts in, seconds or vectors out.

The module holds both ends of the pipe: `LibraryProcess` in the harness, `serve_requests` in the
process that holds the model. Only the time inside the library counts.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from serve_app.types import Float32

from .base import Peer, PeerError, PeerProcess
from .server import PROBE_TEXT, peer_python, start_process

#: Returns the vectors of texts, shape (n, dim).
Encode = Callable[[list[str]], Float32]


class LibraryProcess:
    """A running library; a context manager that stops it."""

    def __init__(self, peer: Peer, precision: str | None = None) -> None:
        """Starts the process without waiting for the model.

        Args:
            peer: the library.
            precision: of EmbedServe's engine; None: its default for this CPU.
        """
        self.peer = peer
        self._scratch = tempfile.TemporaryDirectory(prefix="es-")
        folder = Path(self._scratch.name)
        self._errors = folder / "errors.txt"
        with self._errors.open("wb") as errors:
            self._process = start_process(
                peer,
                PeerProcess(peer_python(peer), 0, folder, precision),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors.fileno(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Waits for the first vector.

        Raises:
            PeerError: the process ended.
        """
        self.time_embedding([PROBE_TEXT])

    def time_embedding(self, texts: list[str]) -> float:
        """Embeds texts and returns the seconds that the library took.

        Raises:
            PeerError: the process ended.
        """
        return float(self._request({"texts": texts})["seconds"])

    def embed(self, texts: list[str]) -> Float32:
        """Returns the vectors of texts, shape (n, dim).

        Raises:
            PeerError: the process ended.
        """
        response = self._request({"texts": texts, "vectors": True})
        return np.array(response["vectors"], dtype=np.float32)

    def stop(self) -> None:
        """Stops the process; safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None, "It was started with pipes. This is a bug."
        assert stdout is not None, "It was started with pipes. This is a bug."
        try:
            stdin.write(orjson.dumps(request).decode() + "\n")
            stdin.flush()
            response: dict[str, Any] = orjson.loads(stdout.readline())
        except (OSError, ValueError):
            output = self._errors.read_text("utf-8", errors="replace").strip()
            raise PeerError(f"the process ended: {output[-1000:]}") from None
        return response


def serve_requests(encode: Encode) -> None:
    """Answers the requests of a `LibraryProcess` until standard input ends."""
    for line in sys.stdin:
        request = orjson.loads(line)
        start = time.perf_counter()
        vectors = encode(request["texts"])
        response: dict[str, Any] = {"seconds": time.perf_counter() - start}
        if request.get("vectors"):
            response["vectors"] = vectors.tolist()
        print(orjson.dumps(response).decode(), flush=True)
