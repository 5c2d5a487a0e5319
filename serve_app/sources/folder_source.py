"""A model in a directory of this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from serve_app.sources.base import Source


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """A directory with a model."""

    description: ClassVar[str] = "`path:<directory>`"

    def resolve(self) -> Path:
        """Returns the directory, which may be missing."""
        return Path(self.location).expanduser()
