"""Arrays of embedding vectors that carry their space and origin."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import fsum
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embedserve_client.space import Space

Float32 = NDArray[np.float32]
#: `service`: computed by the service; `local`: computed in this process.
Source = Literal["service", "local"]


@dataclass(frozen=True, slots=True)
class VectorInfo:
    """Metadata of the vectors of one call."""

    space: Space | None = None  #: None: unknown
    model: str = ""
    source: Source | None = None  #: None: unknown
    tokens: int = 0  #: total of all texts, after truncation
    truncated: tuple[int, ...] = ()  #: positions of texts that exceeded the model's token limit
    cached: int | None = None  #: the number of texts whose vectors were cached; None: unknown
    cost_usd: float | None = None  #: in US dollars; None: the model has no price, or unknown


_UNKNOWN = VectorInfo()


class Vectors(np.ndarray[tuple[int, ...], np.dtype[np.float32]]):
    """A float32 array of shape (n, dim) or (dim,) with metadata in `info`.

    Rows, slices and copies keep `info`; the result of a computation is a plain array.
    """

    info: VectorInfo

    def __new__(cls, values: ArrayLike, info: VectorInfo) -> Self:
        """Returns the values as float32, without a copy if they are float32 already."""
        vectors = np.asarray(values, dtype=np.float32).view(cls)
        vectors.info = info
        return vectors

    def __array_finalize__(self, source_array: NDArray[Any] | None) -> None:
        self.info = getattr(source_array, "info", _UNKNOWN)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce__(self) -> tuple[Any, ...]:
        return Vectors, (np.asarray(self), self.info)

    @property
    def space(self) -> Space | None:
        """The space of the vectors; None: unknown."""
        return self.info.space

    @property
    def source(self) -> Source | None:
        """Where the vectors were computed; None: unknown."""
        return self.info.source


def concatenate(parts: list[Vectors]) -> Vectors:
    """Concatenates the vectors of one call that was split into several requests.

    If any part was computed locally, `source`, `space` and `model` are those of the first such
    part.
    """
    if len(parts) == 1:
        return parts[0]
    truncated, offset = list[int](), 0
    for part in parts:
        truncated += [offset + position for position in part.info.truncated]
        offset += len(part)
    infos = [part.info for part in parts]
    cached = [info.cached for info in infos if info.cached is not None]
    costs = [info.cost_usd for info in infos if info.cost_usd is not None]
    base = next((info for info in infos if info.source == "local"), infos[0])
    info = replace(
        base,
        tokens=sum(info.tokens for info in infos),
        truncated=tuple(truncated),
        cached=sum(cached) if len(cached) == len(infos) else None,
        cost_usd=sum_usd(costs) if costs else None,
    )
    return Vectors(np.concatenate([np.asarray(part) for part in parts]), info)


def unit_length(values: Float32) -> Float32:
    """Returns copies of vectors, shape (n, dim), of length 1; zero vectors stay zero."""
    # At float64, because the squares of large and small float32 values overflow or vanish.
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    norms[norms == 0] = 1.0
    normalized = np.empty_like(values, order="C")
    np.divide(values, norms[:, None], out=normalized, casting="same_kind")
    return normalized


def sum_usd(amounts: Iterable[float]) -> float:
    """Returns the sum of amounts in US dollars, to the nano-dollar."""
    return round(fsum(amounts), 9)
