"""Exact search among vectors, by cosine.

In come vectors, float32 of shape (n, dim), that know their space, and a JSON value for each; out
come the values of those next to a query, best first. Whatever can't be compared with what an index
holds is refused, as it comes in and as it is searched for.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from embedserve_client.errors import IndexMismatch, SpaceMismatch
from embedserve_client.index_files import Held, faiss_library, load, save
from embedserve_client.shared_lock import SharedLock
from embedserve_client.space import Space
from embedserve_client.vectors import Float32, Vectors

if TYPE_CHECKING:
    from embedserve_client.base import How
    from embedserve_client.client import Client

#: What a query has to be embedded with as the texts were, or the two have other lengths.
_SHARED_OPTIONS = ("dimensions", "model")


class Hit(NamedTuple):
    """Something found."""

    score: float  #: cosine, -1 to 1
    place: int  #: among all, from 0, in the order in which they were given
    metadata: Any  #: what was given with it


class _Rows(NamedTuple):
    """Vectors as they came in, once they are known to be vectors."""

    values: Float32  #: shape (n, dim)
    space: Space | None
    model: str


class VectorIndex:
    """Vectors and what they stand for. Safe from many threads; searches don't wait for each other.

    index = VectorIndex.build(texts, client)
    index.search("what is looked for", k=3)  # [Hit(score=0.71, place=4, metadata='a text'), …]

    It needs faiss: `pip install 'embedserve-client[search]'`.
    """

    def __init__(self, *, client: "Client | None" = None) -> None:
        """An empty index.

        Args:
            client: embeds queries that are strings.
        """
        self.client = client
        self._lock = SharedLock()
        self._held: Held | None = None  # None: no vector came yet
        self._asked: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        client: "Client",
        metadata: Sequence[Any] | None = None,
        **how: Unpack["How"],
    ) -> Self:
        """An index of texts.

        Args:
            texts: what is searched; none make an empty index.
            client: embeds them, and later queries that are strings.
            metadata: a JSON value for each text; None: the text itself.
            how: as for `client.embed`.

        Raises:
            IndexMismatch: there are more or fewer values than texts.
            ValueError: a value isn't JSON.
            EmbedError: whatever kept the vectors from coming.
        """
        if isinstance(texts, str):
            raise ValueError("`texts` is one string. Give a list of them.")
        kept = _as_json(texts if metadata is None else metadata, len(texts))
        index = cls(client=client)
        options: dict[str, Any] = dict(how)
        index._asked = {name: options[name] for name in _SHARED_OPTIONS if name in options}
        if kept:
            index._put(_rows(client.embed_documents(texts, **how), None), kept)
        return index

    def add(
        self, vectors: ArrayLike, metadata: Sequence[Any], *, space: str | Space | None = None
    ) -> None:
        """Adds vectors; all of them, or where an error is raised none.

        Args:
            vectors: shape (n, dim), or (dim,) for one; copied.
            metadata: a JSON value for each.
            space: of vectors that don't say it themselves.

        Raises:
            SpaceMismatch: they can't be compared with those in the index.
            IndexMismatch: they are of another length, don't tell their space, or there are more or
                fewer values than vectors.
            ValueError: a vector isn't finite, or a value isn't JSON.
        """
        rows = _rows(vectors, space)
        kept = _as_json(metadata, len(rows.values))
        if kept:
            self._put(rows, kept)

    def _put(self, rows: _Rows, kept: list[Any]) -> None:
        units = _at_unit_length(rows.values)
        with self._lock.writing():
            if self._held is None:
                empty = faiss_library().IndexFlatIP(units.shape[1])
                self._held = Held(empty, [], rows.space, rows.model, self._asked)
            self._check(rows, self._held)
            self._held.vectors.add(units)
            self._held.metadata.extend(kept)

    @overload
    def search(self, query: str, k: int = 10, *, client: "Client | None" = None) -> list[Hit]: ...
    @overload
    def search(self, query: ArrayLike, k: int = 10, *, space: str | Space | None = None) -> Any: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        space: str | Space | None = None,
        client: "Client | None" = None,
    ) -> Any:
        """The k vectors next to a query, best first; all of them where the index has fewer.

        Args:
            query: a string, or vectors of shape (dim,) or (n, dim).
            k: how many.
            space: of vectors that don't say it themselves.
            client: embeds a string; None: the index's own.

        Returns:
            A list of hits; for n vectors a list of n of them.

        Raises:
            SpaceMismatch: the query can't be compared with what is in the index.
            IndexMismatch: it is of another length, doesn't tell its space, or is a string and
                nobody is there to embed it.
            ValueError: it isn't finite, or `k` is below 1.
            EmbedError: whatever kept the query's vector from coming.
        """
        if k < 1:
            raise ValueError(f"`k` is {k}; ask for 1 or more.")
        if isinstance(query, str):
            query = self._embedded(query, client or self.client)
        rows = _rows(query, space)
        units = _at_unit_length(rows.values)
        with self._lock.reading():
            if self._held is None:
                found: list[list[Hit]] = [[] for _ in units]
            else:
                self._check(rows, self._held)
                found = _nearest(self._held, units, k)
        return found[0] if np.ndim(query) == 1 else found

    def _embedded(self, query: str, client: "Client | None") -> Vectors:
        if client is None:
            raise IndexMismatch(
                "This index has no client that embeds queries. Give it one "
                "(`VectorIndex.load(folder, client=client)`), or search for a vector."
            )
        how: How = self._asked  # type: ignore[assignment]
        return client.embed_query(query, **how)

    def save(self, folder: str | Path) -> None:
        """Puts the index into a folder, in place of one that is there.

        The old one stays whole until the new one is: whoever loads finds either.

        Raises:
            FileError: the folder holds something else, or can't be written.
        """
        with self._lock.reading():
            held = self._held
            if held is None:
                held = Held(faiss_library().IndexFlatIP(0), [], None, "", self._asked)
            save(Path(folder), held)

    @classmethod
    def load(cls, folder: str | Path, client: "Client | None" = None) -> Self:
        """The index in a folder, with a client that embeds queries.

        Raises:
            FileError: there is none, or it isn't whole; the message says what is wrong.
            SpaceMismatch: the client's vectors can't be compared with those in the index.
        """
        held = load(Path(folder))
        index = cls(client=client)
        index._asked = held.asked
        if held.metadata:
            index._held = held
            if client is not None and client.space is not None:
                _check_space(client.space, held.space)
        return index

    @property
    def space(self) -> Space | None:
        """The space of its first vectors; None: none came yet, or they don't tell."""
        return self._held.space if self._held else None

    @property
    def model(self) -> str:
        """By whose name its first vectors were computed; empty where that isn't known."""
        return self._held.model if self._held else ""

    @property
    def dim(self) -> int:
        """The length of its vectors; 0: none came yet."""
        return int(self._held.vectors.d) if self._held else 0

    def __len__(self) -> int:
        return len(self._held.metadata) if self._held else 0

    def __repr__(self) -> str:
        return f"<VectorIndex of {len(self)} vectors, dim {self.dim}, space {self.space}>"

    @staticmethod
    def _check(rows: _Rows, held: Held) -> None:
        _check_space(rows.space, held.space)
        dim, wanted = rows.values.shape[1], held.vectors.d
        if dim != wanted:
            raise IndexMismatch(
                f"Vectors of length {dim} came; those in the index have {wanted}. Embed with the "
                "same `dimensions`, or build the index anew."
            )


def _check_space(space: Space | None, held: Space | None) -> None:
    """Lets vectors of a space pass where those of the index are of `held`."""
    if space == held or (space is not None and held is not None and space.mixes_with(held)):
        return
    raise SpaceMismatch(
        f"These vectors are of the space {space or 'unknown'}, those in the index of "
        f"{held or 'an unknown one'}: they can't be compared. Embed with what the index was built "
        "with, or build it anew."
    )


def _rows(values: ArrayLike, space: str | Space | None) -> _Rows:
    """What came in as vectors.

    Raises:
        SpaceMismatch: they are of another space than is said.
        IndexMismatch: they don't tell their space, or have no shape of vectors.
        ValueError: one isn't finite.
    """
    about = values.about if isinstance(values, Vectors) else None
    said = Space.parse(space) if isinstance(space, str) else space
    if said is None and (about is None or about.source is None):
        raise IndexMismatch(
            "A plain array doesn't tell which space its vectors are of. Give what the client "
            "returned, or say it with `space=`."
        )
    if about is not None and about.space is not None:
        if said is not None:
            _check_space(about.space, said)
        said = about.space
    with np.errstate(over="ignore"):  # what is too large for float32 is not finite below
        given = np.asarray(values, dtype=np.float32)
    if given.ndim not in (1, 2) or not given.shape[-1]:
        raise IndexMismatch(
            f"An array of shape {given.shape} holds no vectors; it has to be (n, dim) or (dim,)."
        )
    if not np.isfinite(given).all():
        raise ValueError("A vector isn't finite: it holds NaN or infinity. Leave it out.")
    return _Rows(np.atleast_2d(given), said, about.model if about else "")


def _as_json(metadata: Sequence[Any], n: int) -> list[Any]:
    """A copy of n JSON values, as they will be after `save` and `load`.

    Raises:
        IndexMismatch: they aren't n.
        ValueError: one isn't JSON.
    """
    if isinstance(metadata, str | bytes | Mapping):
        raise IndexMismatch("`metadata` is a single value. Give a list, with one for each vector.")
    if len(metadata) != n:
        raise IndexMismatch(
            f"{len(metadata)} values of metadata came for {n} vectors. Give one for each."
        )
    kept = list(metadata)
    for place, value in enumerate(kept):
        if type(value) is str or value is None:
            continue
        try:
            kept[place] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"Metadata {place} isn't a JSON value: {error}.") from None
    return kept


def _at_unit_length(rows: Float32) -> Float32:
    """Copies at length 1; what has none stays as it is, and is next to nothing."""
    # At float64, where neither the squares of large numbers nor those of small ones are lost.
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    lengths[lengths == 0] = 1.0
    units = np.empty_like(rows, order="C")
    np.divide(rows, lengths[:, None], out=units, casting="same_kind")
    return units


def _nearest(held: Held, units: Float32, k: int) -> list[list[Hit]]:
    scores, places = held.vectors.search(units, min(k, held.vectors.ntotal))
    # Rounding may leave the length of a vector, and with it its cosine, a little above 1.
    scores = np.clip(scores, -1.0, 1.0)
    return [
        [
            Hit(score, place, held.metadata[place])
            for score, place in sorted(
                zip(row, at, strict=True), key=lambda found: (-found[0], found[1])
            )
        ]
        for row, at in zip(scores.tolist(), places.tolist(), strict=True)
    ]
