"""Temporary directories of a running service: for its files, such as HAProxy's, and Ray's."""

import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from serve_app.errors import ConfigurationError

_PREFIX = "embedserve."
#: The limit of Linux for the path of a Unix socket in bytes (108 with its zero byte).
_MAX_SOCKET_PATH = 107
#: The longest paths of sockets: Ray's, and HAProxy's while it moves the socket into place.
_RAY_SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/dash_TaskEventsHead"
_HAPROXY_SOCKET = f"{_PREFIX}12345678/admin.sock.1234567.tmp"
_LOCK = "lock"
#: A new directory is not locked yet.
_MIN_AGE_S = 60.0


class ScratchDir:
    """A private temporary directory. Its files don't outlive a killed owner for long.

    The owner holds a lock in it, which the kernel releases if the owner is killed. Each new
    directory removes those of this user that nobody holds any more.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(self.path / _LOCK)
        self._lock.acquire()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Removes the directory. Further calls do nothing."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def ray_temp_dir() -> Path:
    """Returns the directory below which Ray keeps its sessions, in `ray/`."""
    directory = os.environ.get("RAY_TMPDIR")
    if not directory and sys.platform == "linux":
        directory = os.environ.get("TMPDIR")
    return Path(directory or "/tmp")


def check_socket_paths() -> None:
    """Checks that the paths of all Unix sockets are short enough for the operating system.

    Raises:
        ConfigurationError: `RAY_TMPDIR` or `TMPDIR` is too long.
    """
    ray_variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    for variable, directory, socket in (
        (ray_variable, ray_temp_dir(), _RAY_SOCKET),
        ("TMPDIR", Path(tempfile.gettempdir()), _HAPROXY_SOCKET),
    ):
        limit = _MAX_SOCKET_PATH - len(socket) - 1
        length = len(os.fsencode(directory))
        if length > limit:
            raise ConfigurationError(
                f"The temporary directory {directory} has a path of {length} bytes. Unix sockets "
                f"in it allow {limit}: set `{variable}` to a shorter one, such as /tmp."
            )


def _remove_abandoned() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):
            status = directory.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _MIN_AGE_S:
                continue
            with FileLock(directory / _LOCK, timeout=0):
                shutil.rmtree(directory, ignore_errors=True)
