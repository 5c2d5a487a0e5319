"""A model without files: the hashing engine's."""

from dataclasses import dataclass
from typing import ClassVar

from serve_app.sources.base import HashingParameters, Source

_MIN_DIM, _MAX_DIM = 8, 65536


@dataclass(frozen=True, slots=True)
class HashingSource(Source):
    """`hashing:<dimensions>`."""

    engine: ClassVar[str | None] = "hashing"
    has_files: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Checks the number of dimensions.

        Raises:
            ValueError: it isn't a number, or out of range.
        """
        if not self.location.isdecimal() or not _MIN_DIM <= int(self.location) <= _MAX_DIM:
            raise ValueError(
                f"`source: hashing:<dimensions>` takes {_MIN_DIM} to {_MAX_DIM} dimensions."
            )

    def resolve(self) -> HashingParameters:
        """Returns the parameters of the model."""
        return HashingParameters(int(self.location))
