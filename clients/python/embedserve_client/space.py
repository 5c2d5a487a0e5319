"""Embedding spaces: which vectors may be compared with each other.

A space is written `<family>-<precision>`. The family is a hash of everything that determines a
vector except the precision: weights, pipeline, tokenizer, prompts and token limit.
"""

from dataclasses import dataclass
from typing import Self

from embedserve_client.errors import SpaceMismatchError

_FLOAT_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Space:
    """A model family and the precision of its computation."""

    family: str
    precision: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses `<family>-<precision>`.

        Raises:
            ValueError: the text has another form.
        """
        family, _, precision = text.rpartition("-")
        if not family or not precision:
            raise ValueError(f"{text!r} isn't a space. The form is <family>-<precision>.")
        return cls(family, precision)

    def is_comparable_to(self, other: "Space") -> bool:
        """Returns whether vectors of both spaces may share an index.

        They may if the family is the same and either the precision is the same or both precisions
        are floating-point: vectors of two float precisions have a cosine of at least 0.9999.
        """
        if self.family != other.family:
            return False
        return self.precision == other.precision or (self._is_float and other._is_float)

    @property
    def _is_float(self) -> bool:
        return self.precision.removesuffix("+float16") in _FLOAT_PRECISIONS

    def __str__(self) -> str:
        return f"{self.family}-{self.precision}"


class SpaceGuard:
    """Checks that a client's vectors are comparable with the first ones of the same model.

    Thread-safe. Calls that name no model use the service's default, which counts as one model.
    """

    def __init__(self, expected: Space | None = None, *, strict: bool = True) -> None:
        """Creates a guard.

        Args:
            expected: the space to require of all models; None: that of each model's first vectors.
            strict: False: accepts all spaces and only records the first of each model.
        """
        self._strict = strict
        self._required = expected
        # `setdefault` is atomic: of two threads with the first vectors, one wins.
        self._spaces: dict[str | None, Space | None] = {}

    @property
    def pinned(self) -> Space | None:
        """The space that requests name, so that the service computes no vectors of another one."""
        return self._required if self._strict else None

    def expected(self, model: str | None = None) -> Space | None:
        """Returns the space to require of a model's vectors.

        None: there are no vectors of the model yet, or the service doesn't report spaces.
        """
        return self._required or self._spaces.get(model)

    def check(self, space: Space | None, model: str | None = None) -> None:
        """Checks the space of new vectors.

        Args:
            space: their space; None: the service doesn't report it.
            model: the model's name in the call; None: the service's default model.

        Raises:
            SpaceMismatchError: it can't be compared with the expected space.
        """
        expected = self._required or self._spaces.setdefault(model, space)
        if not self._strict or expected == space:
            return
        if expected is not None and space is not None and space.is_comparable_to(expected):
            return
        raise SpaceMismatchError(
            f"The vectors are in space {space or 'unknown'}, but earlier vectors are in space "
            f"{expected or 'unknown'}: they can't be compared. Embed everything again with one "
            "model, or, if the two are never compared, name the model in each call."
        )
