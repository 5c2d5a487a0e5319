"""A library that is measured without any server: texts in over a pipe, seconds or vectors out.

The same file is both ends: `Worker` here, `answer` in the process that holds the model. Only the
time inside the library counts.
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

from .base import Peer, PeerFailed, Place
from .server import python, start
from serve_app.types import Float32

#: Vectors of texts, shape (n, dim).
Encode = Callable[[list[str]], Float32]


class Worker:
    """One running library; a context manager that ends it."""

    def __init__(self, peer: Peer) -> None:
        """Starts it and returns at once."""
        self.peer = peer
        self._scratch = tempfile.TemporaryDirectory(prefix="es-")
        folder = Path(self._scratch.name)
        self._errors = folder / "errors.txt"
        with self._errors.open("wb") as errors:
            self._process = start(
                peer,
                Place(python(peer), 0, folder),
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
        """Of its process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Waits for the first vector.

        Raises:
            PeerFailed: it ended.
        """
        self.encode(["Are you there?"])

    def encode(self, texts: list[str]) -> float:
        """Has texts embedded; the seconds it took.

        Raises:
            PeerFailed: it ended.
        """
        return float(self._ask({"texts": texts})["seconds"])

    def vectors(self, texts: list[str]) -> Float32:
        """The vectors of texts, shape (n, dim).

        Raises:
            PeerFailed: it ended.
        """
        answer = self._ask({"texts": texts, "vectors": True})
        return np.array(answer["vectors"], dtype=np.float32)

    def stop(self) -> None:
        """Ends it; safe to call twice."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None, "It was started with pipes. This is a bug."
        assert pipe_out is not None, "It was started with pipes. This is a bug."
        try:
            pipe_in.write(orjson.dumps(question).decode() + "\n")
            pipe_in.flush()
            answer: dict[str, Any] = orjson.loads(pipe_out.readline())
        except (OSError, ValueError):
            words = self._errors.read_text("utf-8", errors="replace").strip()
            raise PeerFailed(f"it ended: {words[-1000:]}") from None
        return answer


def answer(encode: Encode) -> None:
    """Answers questions from standard input until it ends."""
    for question in sys.stdin:
        asked = orjson.loads(question)
        begin = time.perf_counter()
        vectors = encode(asked["texts"])
        answer: dict[str, Any] = {"seconds": time.perf_counter() - begin}
        if asked.get("vectors"):
            answer["vectors"] = vectors.tolist()
        print(orjson.dumps(answer).decode(), flush=True)
