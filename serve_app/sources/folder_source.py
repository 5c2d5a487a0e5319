"""A model in a directory of this machine."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.sources.base import Source


@dataclass(frozen=True, slots=True)
class FolderSource(Source):
    """`path:<directory>`."""

    def resolve(self) -> Path:
        """Returns the directory, which may be missing."""
        return Path(self.location).expanduser()
