"""What all sources have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class HashingParameters:
    """What defines a hashing model."""

    dim: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from. Sources with equal fields are the same."""

    #: The engine that such models run on; None: any that runs model files.
    engine: ClassVar[str | None] = None
    #: Whether the model consists of files, which `revision` and `sha256` identify.
    has_files: ClassVar[bool] = True

    location: str  #: the setting, without the prefix
    revision: str | None = None  #: of a repository: 40 hex digits

    def resolve(self) -> Path | HashingParameters:
        """Returns the local directory of the model's files, or what defines a model without files.

        Raises:
            ModelSourceError: there is no such model; the message says how to get it.
        """
        raise NotImplementedError
