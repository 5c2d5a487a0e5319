"""SHA-256 digests of files, computed once on a machine and not by each replica."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import orjson
from platformdirs import user_cache_path

from serve_app.atomic_file import write_atomically

#: Digests of smaller files take less time than looking them up.
_MIN_BYTES = 1 << 20
#: A file that has changed this recently may change again without a new time of change.
_MIN_AGE_NS = 2_000_000_000


def sha256_of(file: Path) -> str:
    """Returns the digest of a file's content.

    Raises:
        OSError: the file can't be read.
    """
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class FileDigests:
    """Digests in the user's cache directory, each valid until its file changes.

    A change of content sets the file's time of change, which no program can set to an earlier one.
    """

    def __init__(
        self, folder: Path | None = None, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Uses a folder for the digests.

        Args:
            folder: None: one in the user's cache directory.
            clock_ns: returns Unix time in nanoseconds.
        """
        self._folder = folder or user_cache_path("embedserve") / "digests"
        self._clock_ns = clock_ns

    def __call__(self, file: Path) -> str:
        """Returns the digest of a file; reads it only if it has changed since the last time.

        Raises:
            OSError: the file can't be read.
        """
        stamp, changed_ns, size = _stamp(file)
        if size < _MIN_BYTES:
            return sha256_of(file)
        name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:32]
        entry = self._folder / f"{name}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = orjson.loads(entry.read_bytes())
            if content["stamp"] == stamp:
                return str(content["sha256"])
        digest = sha256_of(file)
        if _stamp(file)[0] == stamp and self._clock_ns() - changed_ns > _MIN_AGE_NS:
            with contextlib.suppress(OSError):  # a cache that can't be written
                write_atomically(entry, orjson.dumps({"stamp": stamp, "sha256": digest}))
        return digest


def _stamp(file: Path) -> tuple[str, int, int]:
    """Returns what identifies the content, the time of its last change, and its size."""
    status = file.stat()
    fields = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    return "-".join(map(str, fields)), changed_ns, status.st_size
