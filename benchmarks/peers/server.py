"""A peer's server as a process of ours: started, waited for, ended with all that it started."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

from .base import Peer, PeerFailed, Place
from ..target import HttpTarget
from ..usage import family, resume
from serve_app.command.serve import free_port
from serve_app.types import Float32

_POLL_S = 0.3
_STOP_S = 30.0
_LINES = 12


class Server:
    """One running server; a context manager that ends it."""

    def __init__(self, peer: Peer) -> None:
        """Starts it and returns at once."""
        self.peer = peer
        # A short path: Ray puts Unix sockets below it, and those have 107 characters.
        self._scratch = tempfile.TemporaryDirectory(prefix="es-", dir="/tmp")
        port = free_port()
        self.target = HttpTarget(f"http://127.0.0.1:{port}", peer.dialect, peer.model)
        scratch = Path(self._scratch.name)
        self._output = scratch / "output.txt"
        with self._output.open("wb") as output:
            self._process = start(
                peer,
                Place(python(peer), port, scratch),
                stdin=subprocess.DEVNULL,
                stdout=output.fileno(),
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that everything else of the server descends from."""
        return self._process.pid

    def wait_until_ready(self, timeout_s: float = 180.0) -> None:
        """Waits for the first vector.

        Raises:
            PeerFailed: it ended, or gave none in time.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                self.target.vectors(["Are you there?"])
                return
            except (OSError, ValueError, KeyError) as error:
                if self._process.poll() is not None:
                    raise PeerFailed(f"it ended: {self._last_words()}") from None
                if time.monotonic() > end:
                    raise PeerFailed(f"no vector after {timeout_s:.0f} s: {error}") from None
            time.sleep(_POLL_S)

    def vectors(self, texts: list[str]) -> Float32:
        """The vectors of texts, shape (n, dim)."""
        return self.target.vectors(texts)

    def stop(self) -> None:
        """Ends it; safe to call twice."""
        resume(self.pid)  # or it wouldn't hear
        processes = family(self.pid)  # now: one whose parent has ended can't be found any more
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for process in processes:
            if process.is_running():
                process.kill()
        psutil.wait_procs(processes, _STOP_S)
        self._scratch.cleanup()

    def _last_words(self) -> str:
        lines = self._output.read_text("utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-_LINES:])


def python(peer: Peer) -> str:
    """The interpreter that a peer runs on."""
    return sys.executable if peer.environment is None else peer.environment.python


def start(
    peer: Peer, place: Place, *, stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[str]:
    """Starts a peer's process in a session of its own, so that Ctrl-C reaches us only."""
    return subprocess.Popen(
        peer.command(place),
        env={**os.environ, **peer.env},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
