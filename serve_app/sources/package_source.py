"""A model in an installed Python package."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from embedserve_client.model_files import package_model_dir
from serve_app.errors import ModelSourceError
from serve_app.sources.base import Source


@dataclass(frozen=True, slots=True)
class PackageSource(Source):
    """A package with a directory `model`."""

    description: ClassVar[str] = "`package:<module>` (the directory `model/` in a Python package)"

    def resolve(self) -> Path:
        """Returns the directory.

        Raises:
            ModelSourceError: the package isn't installed.
        """
        path = package_model_dir(self.location)
        if path is None:
            raise ModelSourceError(
                f"The package {self.location!r} of the model isn't installed. Run `pip install "
                f"{self.location.replace('_', '-')}`, or set `model.source: path:<directory>`."
            )
        return path
