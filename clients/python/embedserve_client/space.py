"""Spaces: which vectors may be compared with which.

A space is written `<family>-<precision>`. The family is a hash of everything else that decides a
vector: weights, pipeline, tokenizer, prompts, token limit.
"""

from dataclasses import dataclass
from typing import Self

from embedserve_client.errors import SpaceMismatch

_FLOATS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Space:
    """What vectors are made by."""

    family: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `<family>-<precision>`.

        Raises:
            ValueError: it isn't of that form.
        """
        family, _, precision = text.rpartition("-")
        if not family or not precision:
            raise ValueError(f"{text!r} isn't a space; they are written <family>-<precision>.")
        return cls(family, precision)

    def mixes_with(self, other: "Space") -> bool:
        """Whether vectors of both may lie in one index: one family, at float precisions.

        Those of two float precisions are within cosine 0.9999 of each other.
        """
        if self.family != other.family:
            return False
        return self.precision == other.precision or (self._is_float and other._is_float)

    @property
    def _is_float(self) -> bool:
        return self.precision.partition("+")[0] in _FLOATS

    def __str__(self) -> str:
        return f"{self.family}-{self.precision}"


class SpaceGuard:
    """Holds a client to the space of its first vectors. Safe from many threads."""

    def __init__(self, expected: Space | None = None, *, strict: bool = True) -> None:
        """A guard.

        Args:
            expected: the space to hold to; None: that of the first vectors.
            strict: False: lets everything pass, and only remembers.
        """
        self._strict = strict
        # `setdefault` is one step, so that of two threads with the first vectors one decides.
        self._held: dict[str, Space | None] = {} if expected is None else {"space": expected}

    @property
    def expected(self) -> Space | None:
        """The space that is held to; None: none came yet, or the service doesn't say."""
        return self._held.get("space")

    def check(self, space: Space | None) -> None:
        """Lets vectors of `space` pass; None: the service didn't say.

        Raises:
            SpaceMismatch: they can't be compared with those before.
        """
        held = self._held.setdefault("space", space)
        if not self._strict or held == space:
            return
        if held is not None and space is not None and space.mixes_with(held):
            return
        raise SpaceMismatch(
            f"These vectors are of the space {space or 'unknown'}, those before of "
            f"{held or 'an unknown one'}: they can't be compared. Embed everything anew with one "
            "model, or, if the two never meet, make a client of its own for each."
        )
