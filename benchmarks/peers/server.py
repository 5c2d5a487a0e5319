"""The process of a peer that is a server: start, readiness and shutdown."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from serve_app.command.ports import free_port
from serve_app.command.process_tree import wait_or_kill
from serve_app.types import Float32

from ..target import HttpTarget
from ..usage import process_tree, resume
from .base import Peer, PeerError, PeerProcess

PROBE_TEXT = "Are you there?"
_POLL_S = 0.1
_STOP_S = 30.0
_OUTPUT_LINES = 12


class ServerProcess:
    """A running server; a context manager that stops it."""

    def __init__(self, peer: Peer, precision: str | None = None) -> None:
        """Starts the process without waiting until it serves.

        Args:
            peer: the server.
            precision: of EmbedServe's engine; None: its default for this CPU.
        """
        self.peer = peer
        # A short path: Ray creates Unix sockets below it, whose paths are limited to 107 bytes.
        self._scratch = tempfile.TemporaryDirectory(prefix="es-", dir="/tmp")
        port = free_port()
        self.target = HttpTarget(f"http://127.0.0.1:{port}", peer.dialect, peer.model)
        scratch = Path(self._scratch.name)
        self._output = scratch / "output.txt"
        with self._output.open("wb") as output:
            self._process = start_process(
                peer,
                PeerProcess(peer_python(peer), port, scratch, precision),
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
        """The id of the process that all other processes of the server descend from."""
        return self._process.pid

    def wait_until_ready(
        self, timeout_s: float = 180.0, texts: Sequence[str] = (PROBE_TEXT,)
    ) -> None:
        """Waits until the server returns the vectors of texts.

        Raises:
            PeerError: the process ended, or returned no vectors in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.target.embed(list(texts))
                return
            except (OSError, ValueError, KeyError) as error:
                if self._process.poll() is not None:
                    raise PeerError(f"the process ended: {self._output_tail()}") from None
                if time.monotonic() > deadline:
                    raise PeerError(f"no vector after {timeout_s:.0f} s: {error}") from None
            time.sleep(_POLL_S)

    def embed(self, texts: list[str]) -> Float32:
        """Returns the vectors of texts, shape (n, dim)."""
        return self.target.embed(texts)

    def stop(self) -> None:
        """Stops the process and its descendants; safe to call twice."""
        resume(self.pid)  # a suspended process can't handle the signal
        # Listed before the parent ends, since orphans can't be attributed to it.
        processes = process_tree(self.pid)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        wait_or_kill(processes, 0)
        self._scratch.cleanup()

    def _output_tail(self) -> str:
        lines = self._output.read_text("utf-8", errors="replace").strip().splitlines()
        return "\n".join(lines[-_OUTPUT_LINES:])


def peer_python(peer: Peer) -> str:
    """Returns the interpreter that a peer runs on."""
    return sys.executable if peer.environment is None else peer.environment.python


def start_process(
    peer: Peer, process: PeerProcess, *, stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[str]:
    """Starts a peer in a session of its own, so that Ctrl-C interrupts only the harness."""
    return subprocess.Popen(
        peer.command(process),
        env={**os.environ, **peer.env},
        cwd=peer.cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
