"""Virtual environments for peers whose requirements conflict with the project's."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..paths import PEER_ENVIRONMENTS


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment with pinned packages."""

    name: str
    requirements: Path  #: a requirements file
    #: Called with the environment's folder after the installation, e.g. to convert the model.
    post_install: Callable[[Path], None] = lambda folder: None
    parent: Path = PEER_ENVIRONMENTS  #: the folder that holds the environment's folder

    @property
    def folder(self) -> Path:
        """The environment's folder."""
        return self.parent / self.name

    @property
    def python(self) -> str:
        """The path of its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def is_installed(self) -> bool:
        """Whether it was installed completely, from the present content of the requirements."""
        return self._marker.is_file() and self._marker.read_text() == self._digest()

    def install(self) -> None:
        """Creates the environment; replaces an existing one.

        Raises:
            subprocess.CalledProcessError: pip or `post_install` failed; `stderr` has the reason.
        """
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(self.requirements)])
        self.post_install(self.folder)
        self._marker.write_text(self._digest())

    @property
    def _marker(self) -> Path:
        return self.folder / ".installed"

    def _digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
