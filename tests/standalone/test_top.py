"""`embedserve top` in a terminal, against a standalone service."""

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.standalone.hashing_service import MODEL, run_hashing_service

LIMIT_S = 60
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEAVE_SCREEN = "\x1b[?1049l"


class Terminal:
    """A terminal in which the command runs."""

    def __init__(self, url: str) -> None:
        self._master, self._slave = os.openpty()
        self.resize(80, 24)
        self.attributes = self._attributes()
        environment = os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.command.main", "top", url, "--interval", "0.5"],
            preexec_fn=lambda: os.login_tty(self._slave),  # so that it gets the keys' signals
            env=environment,
        )
        self.output = ""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        """Sends keys; `wait_for` looks at what comes from now on."""
        self.output = ""
        os.write(self._master, keys.encode())

    def wait_for(self, text: str) -> None:
        """Reads until the output has a text."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.output and text not in _STYLES.sub("", self.output):
            assert time.monotonic() < deadline, f"no {text!r} in {self.output[-4000:]!r}"
            if select.select([self._master], [], [], 1)[0]:
                self.output += os.read(self._master, 1 << 16).decode("utf-8", "replace")

    def wait_for_end(self) -> int:
        """Returns the exit status; the terminal must be as it was."""
        self.wait_for(_LEAVE_SCREEN)
        status = self.process.wait(LIMIT_S)
        assert self._attributes() == self.attributes
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _attributes(self) -> list[object]:
        return termios.tcgetattr(self._slave)


@contextlib.contextmanager
def run_top(url: str) -> Iterator[Terminal]:
    terminal = Terminal(url)
    try:
        yield terminal
    finally:
        terminal.close()


def test_keys_a_new_size_and_a_restart_of_the_service() -> None:
    with contextlib.ExitStack() as first:
        url = first.enter_context(run_hashing_service())
        with run_top(url) as terminal:
            terminal.wait_for(MODEL)
            assert "decided by" not in terminal.output
            terminal.press("m")
            terminal.wait_for("models by requests")
            terminal.press("p")
            terminal.wait_for("paused")
            terminal.press("p")
            terminal.wait_for("q quit")
            terminal.resize(140, 50)
            terminal.wait_for("decided by")
            first.close()
            terminal.wait_for("No connection")
            with run_hashing_service(port=urlsplit(url).port or 0):
                terminal.output = ""
                terminal.wait_for("models by requests")
                terminal.press("q")
                assert terminal.wait_for_end() == 0


@pytest.mark.parametrize("end", ["ctrl-c", "sigterm"])
def test_a_signal_leaves_the_terminal_as_it_was(end: str) -> None:
    with run_hashing_service() as url, run_top(url) as terminal:
        terminal.wait_for("q quit")
        if end == "ctrl-c":
            terminal.press("\x03")
        else:
            terminal.process.terminate()
        assert terminal.wait_for_end() == 0
