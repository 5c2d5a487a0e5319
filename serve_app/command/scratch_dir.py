"""Directories for the files of a running service, such as HAProxy's configuration."""

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

#: Short, because the path of a socket in it may have 97 bytes.
_PREFIX = "embedserve."
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


def _remove_abandoned() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):
            status = directory.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _MIN_AGE_S:
                continue
            with FileLock(directory / _LOCK, timeout=0):
                shutil.rmtree(directory, ignore_errors=True)
