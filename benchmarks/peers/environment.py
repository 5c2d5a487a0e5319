"""A virtual environment for a peer whose packages would quarrel with ours."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).parents[2] / ".venv-peers"


@dataclass(frozen=True, slots=True)
class Environment:
    """Pinned packages, and what is made of them once."""

    name: str
    requirements: Path  #: what pip reads
    #: Called with the environment's folder after installing, e.g. to convert the model.
    prepare: Callable[[Path], None] = lambda folder: None

    @property
    def folder(self) -> Path:
        """Where it lies, in the project's folder."""
        return _ROOT / self.name

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    @property
    def ready(self) -> bool:
        """Whether it is complete and made of just these requirements."""
        return self._mark.is_file() and self._mark.read_text() == self._digest()

    def install(self) -> None:
        """Makes it anew.

        Raises:
            subprocess.CalledProcessError: pip or `prepare` failed; `stderr` says why.
        """
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--requirement", str(self.requirements)])
        self.prepare(self.folder)
        self._mark.write_text(self._digest())

    @property
    def _mark(self) -> Path:
        return self.folder / ".installed"

    def _digest(self) -> str:
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
