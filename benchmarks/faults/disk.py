"""A small file system in memory, which can be filled."""

import os
import subprocess
from pathlib import Path

_SIZE_MIB = 384
_BLOCK = bytes(1 << 16)


class Disk:
    """A directory with a file system of its own, where the user may mount one."""

    def __init__(self, folder: Path) -> None:
        """A disk that isn't created yet, at a directory that doesn't exist."""
        self.folder = folder
        self.is_mounted = False
        self._filler = folder / "filler"

    def create(self) -> None:
        """Creates the directory and mounts a file system there, if that is permitted."""
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE_MIB}m,mode=700", "tmpfs"]
        done = subprocess.run([*command, str(self.folder)], capture_output=True, check=False)
        self.is_mounted = done.returncode == 0

    def fill(self) -> None:
        """Writes until no space is left.

        Raises:
            RuntimeError: the directory has no file system of its own.
        """
        if not self.is_mounted:
            raise RuntimeError("Only root can mount a small disk.")
        with self._filler.open("ab", buffering=0) as file:
            while True:
                try:
                    os.write(file.fileno(), _BLOCK)
                except OSError:
                    return

    def free(self) -> None:
        """Frees what `fill` has taken."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmounts the file system."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)
            self.is_mounted = False
