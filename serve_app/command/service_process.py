"""A service as a child process: its start, its failure, and the end of all its processes."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import psutil

from serve_app.command.process_tree import (
    cache_servers,
    have_exited,
    send_signal,
    session_processes,
    stop_cache_servers,
    wait_or_kill,
)
from serve_app.parent_death import die_with_parent

_POLL_S = 0.3
_STOP_TIMEOUT_S = 60.0
_EXIT_TIMEOUT_S = 3.0
_OUTPUT_TIMEOUT_S = 2.0
_MAX_FAILED_CHECKS = 24
_MAX_LOG_LINES = 60
_ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class StartupError(Exception):
    """The service didn't start; the message gives the reason."""


class ServiceFailure(Exception):
    """The service was ready and can't serve any more; the message gives the reason."""


class ServiceProcess:
    """A command that serves HTTP and ends on SIGINT, with everything that it starts."""

    #: The subject of messages about the process.
    _name = "The service"

    def __init__(
        self,
        command: Sequence[str],
        url: str,
        *,
        env: Mapping[str, str] | None = None,
        verbose: bool = False,
    ) -> None:
        """Creates the process without starting it.

        Args:
            command: the program and its arguments.
            url: where the service will answer.
            env: environment variables in addition to those of this process.
            verbose: print the output of the process to standard error.
        """
        self.url = url
        self._command = command
        self._env = dict(env or {})
        self._verbose = self._verbose_at_start = verbose
        self._log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
        self._child: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def successor(self) -> Self:
        """Returns a new process, not started yet, in place of this one."""
        return type(self)(self._command, self.url, env=self._env, verbose=self._verbose_at_start)

    def start(self) -> None:
        """Starts the command and returns at once."""
        self._child = subprocess.Popen(
            self._command,
            env={**os.environ, **self._env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal reaches the parent only
            preexec_fn=die_with_parent(signal.SIGINT),
        )
        self._reader = threading.Thread(target=self._read_output, args=(self._child,), daemon=True)
        self._reader.start()

    def wait_until_ready(self, timeout_s: float = 600.0) -> Iterator[str]:
        """Yields the startup progress at each change, until the service is healthy.

        Raises:
            StartupError: the process exited, the service failed, or the timeout expired.
        """
        started_at = time.monotonic()
        reported = ""
        while not self._answers("/health", 1):
            if reason := self._death():
                raise StartupError(f"{reason} before the service was up:\n{self._last_lines()}")
            if time.monotonic() - started_at > timeout_s:
                raise StartupError(
                    f"The service was not ready after {timeout_s:.0f} s. Waiting for: {reported}."
                )
            progress = self._progress()
            if progress != reported:
                reported = progress
                yield f"{progress} ({time.monotonic() - started_at:.0f} s)"
            time.sleep(_POLL_S)
        self._on_answer()

    def watch(self, check_period_s: float = 5.0) -> None:
        """Waits until the service fails. Prints the output of the process.

        A busy service does not fail: a check asks for liveness only, and 24 in a row have to fail.

        Args:
            check_period_s: time between two checks, and the timeout of each.

        Raises:
            ServiceFailure: a process ended that the service can't do without, or nothing has
                answered for 24 checks: two minutes.
        """
        self._verbose = True
        failed_checks, next_check = 0, time.monotonic() + check_period_s
        while failed_checks < _MAX_FAILED_CHECKS:
            if reason := self._death():
                raise ServiceFailure(f"{reason}.")
            if time.monotonic() >= next_check:
                answers = self._answers("/v1/health/live", check_period_s)
                failed_checks = 0 if answers else failed_checks + 1
                if answers:
                    self._on_answer()
                next_check = time.monotonic() + check_period_s
            time.sleep(min(_POLL_S, check_period_s))
        raise ServiceFailure(f"Nothing answers at {self.url}.")

    def drain(self, timeout_s: float) -> bool:
        """Lets the requests in flight end, and returns whether all have ended in time."""
        if self._child is None or self._child.poll() is not None:
            return True
        child = [psutil.Process(self._child.pid)]
        send_signal(child, signal.SIGINT)
        return have_exited(child, timeout_s)

    def stop(self, *, kill: bool = False) -> None:
        """Ends the service and every process that it started. Further calls do nothing.

        A KeyboardInterrupt skips the wait for a graceful end: all processes are killed.

        Args:
            kill: don't wait for a graceful end, which takes long if the service has failed.
        """
        self._verbose = False  # the output during shutdown is noise
        tree = self._process_tree()  # now: children of an exited parent can't be found later
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(0 if kill else _STOP_TIMEOUT_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._child.kill()
                self._child.wait()
        wait_or_kill(tree, 0 if kill else _EXIT_TIMEOUT_S)
        stop_cache_servers(self._owner_pids(tree))
        if self._reader is not None:
            self._reader.join()

    def processes(self) -> list[psutil.Process]:
        """Returns every process of the service, its cache server included."""
        tree = self._process_tree()
        return [*tree, *cache_servers(self._owner_pids(tree))]

    def _death(self) -> str | None:
        """Returns which process has ended that the service can't do without; None: none has."""
        if self._child is None or (status := self._child.poll()) is not None:
            return f"{self._name} exited with status {status}"
        return None

    def _last_lines(self) -> str:
        """Returns the end of the output of a process that has exited."""
        if self._reader is not None:
            # The last lines, which tell the reason, may still be in the pipe. Processes that
            # outlive the child can keep it open.
            self._reader.join(_OUTPUT_TIMEOUT_S)
        return "".join(self._log)

    def _progress(self) -> str:
        """Returns what the service waits for while it starts.

        Raises:
            StartupError: it can't start.
        """
        return "the service"

    def _on_line(self, line: str) -> None:
        """Handles a line of output, without colors."""

    def _on_answer(self) -> None:
        """Handles the end of the start, and each check that was answered."""

    def _owner_pids(self, tree: Sequence[psutil.Process]) -> set[int]:
        """Returns the processes that may own a cache server."""
        return {process.pid for process in tree}

    def _process_tree(self) -> list[psutil.Process]:
        return [] if self._child is None else session_processes(self._child.pid)

    def _read_output(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None, "The child was started with a pipe. This is a bug."
        for line in child.stdout:
            plain = _ANSI_COLOR.sub("", line)
            self._log.append(plain)
            self._on_line(plain)
            if self._verbose:
                sys.stderr.write(line)
                sys.stderr.flush()
        child.stdout.close()

    def _answers(self, path: str, timeout_s: float) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_s) as response:
                return bool(response.status == 200)
        except (OSError, http.client.HTTPException):
            return False
