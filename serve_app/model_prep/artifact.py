"""An artifact: a folder of the artifact cache, its manifest, and the processes that use it."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout

from serve_app.models.file_digests import sha256_of

_MANIFEST, _LABELS, _MARK_SUFFIX = "digests.json", "labels.json", ".user"
#: The locks that this process holds until it ends, by artifact.
_held: dict[Path, FileLock] = {}


def write_manifest(folder: Path) -> None:
    """Records the digest of every file in a folder, which marks the artifact as complete."""
    digests = {file.name: sha256_of(file) for file in folder.iterdir()}
    (folder / _MANIFEST).write_bytes(orjson.dumps(digests, option=orjson.OPT_INDENT_2))


class Artifact:
    """A folder that is built once and read by any number of processes."""

    def __init__(self, folder: Path) -> None:
        """Refers to a folder, which may not exist yet."""
        self.folder = folder
        #: Held by the process that builds or removes the folder.
        self.lock = FileLock(f"{folder}.lock")

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What the artifact was built from: `model`, `space`, …; empty if that wasn't recorded."""
        try:
            labels = orjson.loads((self.folder / _LABELS).read_bytes())
        except (OSError, ValueError):
            return {}
        return labels if isinstance(labels, dict) else {}

    def label(self, labels: Mapping[str, str]) -> None:
        """Records what the artifact was built from, unless that is recorded or can't be written."""
        if not self.labels:
            with contextlib.suppress(OSError):
                (self.folder / _LABELS).write_bytes(orjson.dumps(labels))
            del self.labels

    @cached_property
    def size_bytes(self) -> int:
        """The size of all files; 0 once another process has removed them."""
        with contextlib.suppress(FileNotFoundError):
            return sum(file.stat().st_size for file in self.folder.iterdir())
        return 0

    @property
    def built_s(self) -> float:
        """When it was built, in Unix time; 0 if its manifest is missing."""
        return _modified_s(self.folder / _MANIFEST)

    @property
    def used_s(self) -> float:
        """When a process last loaded it, in Unix time."""
        return _modified_s(self.folder)

    def damage(self, digest: Callable[[Path], str] = sha256_of) -> list[str]:
        """Returns what is wrong with the files, one sentence each; empty if they are intact.

        Args:
            digest: returns the SHA-256 of a file.
        """
        try:
            digests: Any = orjson.loads((self.folder / _MANIFEST).read_bytes())
            if not digests or not isinstance(digests, dict):
                return [f"{_MANIFEST} lists no files."]
        except (OSError, ValueError):
            return [f"{_MANIFEST} is missing or unreadable."]
        faults = (self._fault(name, recorded, digest) for name, recorded in digests.items())
        return [fault for fault in faults if fault]

    def _fault(self, name: str, recorded: object, digest: Callable[[Path], str]) -> str | None:
        try:
            intact = digest(self.folder / name) == recorded
        except OSError as error:
            return f"{name}: {error.strerror}."
        return None if intact else f"{name} has changed since it was written."

    def hold(self) -> None:
        """Marks the artifact as used, until this process ends.

        A folder that can't be written, such as that of a read-only image, needs no mark.
        """
        with contextlib.suppress(OSError):
            os.utime(self.folder)
            self.is_in_use()  # removes the marks of processes that have ended
            if self.folder not in _held:
                mark = f"{self.folder.name}.{uuid.uuid4().hex}{_MARK_SUFFIX}"
                lock = FileLock(self.folder.with_name(mark))
                lock.acquire()  # the system releases it however the process ends
                _held[self.folder] = lock

    def is_in_use(self) -> bool:
        """Returns whether a process holds it. Removes the marks of processes that have ended."""
        locked = [_is_locked(file) for file in self._marks()]
        return any(locked)

    def _marks(self) -> list[Path]:
        """Returns the lock files of the processes that use the folder."""
        return [*self.folder.parent.glob(f"{self.folder.name}.*{_MARK_SUFFIX}")]

    def remove(self) -> bool:
        """Removes the folder; returns False, and leaves it, if a process builds or uses it.

        Raises:
            OSError: the folder can't be removed.
        """
        try:
            with self.lock.acquire(timeout=0):
                if self.is_in_use():
                    return False
                # Renamed first, so that nobody finds a part of it.
                removed = self.folder.with_name(f"building-{self.folder.name}-removed")
                shutil.rmtree(removed, ignore_errors=True)
                os.replace(self.folder, removed)
                shutil.rmtree(removed)
        except Timeout:
            return False
        return True


def _modified_s(path: Path) -> float:
    """Returns the time of the last modification; 0 once another process has removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_locked(file: Path) -> bool:
    try:
        with FileLock(file).acquire(timeout=0):
            file.unlink(missing_ok=True)
    except Timeout:
        return True
    except OSError:  # another process removed it
        return False
    return False
