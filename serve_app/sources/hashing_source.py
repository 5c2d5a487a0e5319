"""A model without files: the hashing engine's."""

from dataclasses import dataclass
from typing import ClassVar

from embedserve_client.model_files import DEFAULT_PROMPTS, json_digest
from serve_app.model_spec import ModelSpec
from serve_app.sources.base import Source, SpecSettings

#: Part of the space id. Bump it whenever the vectors of the hashing engine change.
_VERSION = 1
_MAX_TOKENS = 512
_MIN_DIM, _MAX_DIM = 8, 65536


@dataclass(frozen=True, slots=True)
class HashingParameters:
    """What defines a hashing model."""

    dim: int

    def spec(self, name: str, aliases: tuple[str, ...], settings: SpecSettings) -> ModelSpec:
        """Returns the model's spec; its tokens are words."""
        limit = settings.max_tokens or _MAX_TOKENS
        parts = {"hashing": _VERSION, "dim": self.dim, "max_tokens": limit}
        return ModelSpec(
            name=name,
            aliases=aliases,
            dim=self.dim,
            max_tokens=limit,
            prompts=DEFAULT_PROMPTS,
            default_prompt=None,
            weights_sha256=None,
            space_id=f"{json_digest(parts)}-fp32",
            created_s=0,
            unit_length=True,
            pooling="mean",
            tasks=("embed",),
        )


@dataclass(frozen=True, slots=True)
class HashingSource(Source):
    """The number of dimensions."""

    description: ClassVar[str] = (
        f"`hashing:<dimensions>` ({_MIN_DIM} to {_MAX_DIM}; needs no files: it hashes words into a "
        "vector)"
    )
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
