"""Vectors as they are given to users: an array that knows where it comes from."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedserve_client.space import Space

Float32 = NDArray[np.float32]
#: `local`: computed in this process, since the service was away or none was asked.
Source = Literal["service", "local"]


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a call's vectors."""

    space: Space | None = None  #: None: it isn't known, or the service didn't say
    model: str = ""
    source: Source | None = None  #: None: it isn't known
    tokens: int = 0  #: of all texts of the call, after truncation
    truncated: tuple[int, ...] = ()  #: places of texts that were longer than the model takes


_UNKNOWN = About()


class Vectors(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """A float32 array of shape (n, dim), or (dim,), with what is known of it in `about`.

    Rows, slices and copies keep `about`; what is computed from vectors is a plain array.
    """

    about: About

    def __new__(cls, values: ArrayLike, about: About) -> Self:
        """The values as float32; not copied where they are already."""
        made = np.asarray(values, dtype=np.float32).view(cls)
        made.about = about
        return made

    def __array_finalize__(self, made_of: NDArray[Any] | None) -> None:
        self.about = getattr(made_of, "about", _UNKNOWN)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vectors, (np.asarray(self), self.about)

    @property
    def space(self) -> Space | None:
        """The vectors' space; None: it isn't known."""
        return self.about.space

    @property
    def source(self) -> Source | None:
        """Who computed them."""
        return self.about.source


def joined(parts: list[Vectors]) -> Vectors:
    """The vectors of one call that was sent in parts, in order; one part as it is.

    `source` is `local` where any of them is; that and the space are then those of that part.
    """
    if len(parts) == 1:
        return parts[0]
    truncated, before = list[int](), 0
    for part in parts:
        truncated += [before + place for place in part.about.truncated]
        before += len(part)
    told = [part.about for part in parts]
    first = next((about for about in told if about.source == "local"), told[0])
    about = replace(first, tokens=sum(about.tokens for about in told), truncated=tuple(truncated))
    return Vectors(np.concatenate([np.asarray(part) for part in parts]), about)
