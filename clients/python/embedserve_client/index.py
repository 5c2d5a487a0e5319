"""Exact vector search by cosine similarity.

Vectors (float32, shape (n, dim)) and one JSON value for each go in; a query returns the values of
the most similar vectors, best first. Vectors of an incomparable space are rejected when they are
added and when they are searched for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from embedserve_client.errors import IndexMismatchError, SpaceMismatchError
from embedserve_client.hit import Hit, rerank_hits
from embedserve_client.index_files import IndexData, import_faiss, load, save
from embedserve_client.read_write_lock import ReadWriteLock
from embedserve_client.space import Space
from embedserve_client.vectors import Float32, Vectors, unit_length

if TYPE_CHECKING:
    from embedserve_client.base import EmbedOptions
    from embedserve_client.client import Client

#: Options that queries must share with the texts, because they change the length of vectors.
_QUERY_OPTIONS = ("dimensions", "model")


class _VectorBatch(NamedTuple):
    """Validated vectors."""

    values: Float32  #: shape (n, dim)
    space: Space | None
    model: str


class VectorIndex:
    """An in-memory index. Thread-safe; searches run concurrently.

    index = VectorIndex.build(texts, client)
    index.search("a query", k=3)  # [Hit(score=0.71, position=4, metadata='a text'), …]
    index.search("a query", k=3, rerank=50)  # the best 3 of 50 candidates, says a reranker

    It needs faiss: `pip install 'embedserve-client[search]'`.
    """

    def __init__(self, *, client: "Client | None" = None) -> None:
        """Creates an empty index.

        Args:
            client: embeds queries that are strings.
        """
        self.client = client
        self._lock = ReadWriteLock()
        self._data: IndexData | None = None  # None: no vectors yet, so no dimension either
        self._query_options: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        texts: Sequence[str],
        client: "Client",
        metadata: Sequence[Any] | None = None,
        **options: Unpack["EmbedOptions"],
    ) -> Self:
        """Embeds texts and returns an index of them.

        Args:
            texts: the documents; may be empty.
            client: embeds the texts, and later queries that are strings.
            metadata: a JSON value for each text; None: the text itself.
            options: options of `client.embed_documents`.

        Raises:
            IndexMismatchError: the number of values isn't the number of texts.
            ValueError: a value isn't JSON.
            EmbedError: the texts can't be embedded.
        """
        if isinstance(texts, str):
            raise ValueError("`texts` is one string. Pass a list of strings.")
        values = _copy_json(texts if metadata is None else metadata, len(texts))
        index = cls(client=client)
        all_options: dict[str, Any] = dict(options)
        index._query_options = {n: all_options[n] for n in _QUERY_OPTIONS if n in all_options}
        if values:
            index._add(_validate(client.embed_documents(texts, **options), None), values)
        return index

    def add(
        self, vectors: ArrayLike, metadata: Sequence[Any], *, space: str | Space | None = None
    ) -> None:
        """Adds copies of vectors. If it raises an error, none are added.

        Args:
            vectors: shape (n, dim), or (dim,) for one vector.
            metadata: a JSON value for each vector.
            space: the space of plain arrays, which don't carry one.

        Raises:
            SpaceMismatchError: the vectors can't be compared with those in the index.
            IndexMismatchError: the dimension, the shape or the number of values doesn't fit, or the
                space is unknown.
            ValueError: a vector isn't finite, or a value isn't JSON.
        """
        batch = _validate(vectors, space)
        values = _copy_json(metadata, len(batch.values))
        if values:
            self._add(batch, values)

    def _add(self, batch: _VectorBatch, metadata: list[Any]) -> None:
        normalized = unit_length(batch.values)
        with self._lock.write_lock():
            if self._data is None:
                empty = import_faiss().IndexFlatIP(normalized.shape[1])
                self._data = IndexData(empty, [], batch.space, batch.model, self._query_options)
            self._check(batch, self._data)
            self._data.vectors.add(normalized)
            self._data.metadata.extend(metadata)

    @overload
    def search(
        self,
        query: str,
        k: int = 10,
        *,
        client: "Client | None" = None,
        rerank: int | None = None,
        rerank_model: str | None = None,
        document: Callable[[Any], str] | None = None,
    ) -> list[Hit]: ...
    @overload
    def search(self, query: ArrayLike, k: int = 10, *, space: str | Space | None = None) -> Any: ...
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        space: str | Space | None = None,
        client: "Client | None" = None,
        rerank: int | None = None,
        rerank_model: str | None = None,
        document: Callable[[Any], str] | None = None,
    ) -> Any:
        """Returns the k vectors most similar to a query, best first.

        With `rerank`, the most similar vectors are only candidates: a reranker reads the query
        together with the document of each, and the k best are returned with its scores.

        Args:
            query: a string, or vectors of shape (dim,) or (n, dim).
            k: the maximum number of hits.
            space: the space of plain arrays, which don't carry one.
            client: embeds a string, and reranks; None: the client of the index.
            rerank: the number of candidates, at least `k`, for a query that is a string; None: no
                reranking.
            rerank_model: a name or alias of the reranker; None: that of `Client.rerank`.
            document: returns the text of a hit's metadata; None: the metadata are the texts.

        Returns:
            A list of hits; for n vectors, a list of n such lists.

        Raises:
            SpaceMismatchError: the query can't be compared with the vectors in the index.
            IndexMismatchError: the dimension or shape doesn't fit, the space is unknown, the query
                is a string and there is no client, or the documents of candidates aren't known.
            ValueError: the query isn't finite, `k` is below 1, or `rerank` below `k`.
            EmbedError: the query can't be embedded, or the candidates can't be reranked.
        """
        if k < 1:
            raise ValueError(f"`k` must be at least 1, not {k}.")
        client = client or self.client
        if rerank is not None:
            if rerank < k or not isinstance(query, str):
                raise ValueError(
                    f"`rerank={rerank}` needs a query that is a string, and must be at least `k`, "
                    f"which is {k}."
                )
            candidates = self.search(query, rerank, client=client)
            assert client is not None, "A string was embedded without a client. This is a bug."
            return rerank_hits(query, candidates, k, client, rerank_model, document)
        if isinstance(query, str):
            query = self._embed_query(query, client)
        batch = _validate(query, space)
        normalized = unit_length(batch.values)
        with self._lock.read_lock():
            if self._data is None:
                hits: list[list[Hit]] = [[] for _ in normalized]
            else:
                self._check(batch, self._data)
                hits = _search(self._data, normalized, k)
        return hits[0] if np.ndim(query) == 1 else hits

    def _embed_query(self, query: str, client: "Client | None") -> Vectors:
        if client is None:
            raise IndexMismatchError(
                "The index has no client to embed a string query. Pass one "
                "(`VectorIndex.load(path, client=client)`), or search for a vector."
            )
        options: EmbedOptions = self._query_options  # type: ignore[assignment]
        return client.embed_query(query, **options)

    def save(self, path: str | Path) -> None:
        """Saves the index to a directory and replaces an index that is there.

        The replacement is atomic: a concurrent `load` returns the old or the new index.

        Raises:
            FileError: the directory holds other files, or can't be written.
        """
        with self._lock.read_lock():
            data = self._data
            if data is None:
                data = IndexData(self.faiss, [], None, "", self._query_options)
            save(Path(path), data)

    @classmethod
    def load(cls, path: str | Path, client: "Client | None" = None) -> Self:
        """Loads an index from a directory.

        Args:
            path: the directory.
            client: embeds queries that are strings.

        Raises:
            FileError: there is no index, or it is damaged.
            SpaceMismatchError: the client's vectors can't be compared with those in the index.
        """
        data = load(Path(path))
        index = cls(client=client)
        index._query_options = data.query_options
        if data.metadata:
            index._data = data
            # `client.space` is that of its own model; `search` checks any other.
            space = None if client is None or "model" in data.query_options else client.space
            if space is not None:
                _check_space(space, data.space)
        return index

    @property
    def faiss(self) -> Any:
        """The `faiss.IndexFlatIP` with the vectors, scaled to unit length.

        It is the index itself, not a copy: add vectors with `add`, which also checks their space.
        """
        data = self._data
        return import_faiss().IndexFlatIP(0) if data is None else data.vectors

    @property
    def space(self) -> Space | None:
        """The space of the first vectors; None: no vectors, or unknown."""
        return self._data.space if self._data else None

    @property
    def model(self) -> str:
        """The model of the first vectors; empty: unknown."""
        return self._data.model if self._data else ""

    @property
    def dim(self) -> int:
        """The dimension of the vectors; 0: no vectors."""
        return int(self._data.vectors.d) if self._data else 0

    def __len__(self) -> int:
        return len(self._data.metadata) if self._data else 0

    def __repr__(self) -> str:
        return f"<VectorIndex of {len(self)} vectors, dim {self.dim}, space {self.space}>"

    @staticmethod
    def _check(batch: _VectorBatch, data: IndexData) -> None:
        _check_space(batch.space, data.space)
        dim, expected = batch.values.shape[1], data.vectors.d
        if dim != expected:
            raise IndexMismatchError(
                f"The vectors have {dim} dimensions, those in the index {expected}. Embed with the "
                "same `dimensions`, or rebuild the index."
            )


def _check_space(space: Space | None, expected: Space | None) -> None:
    if space == expected:
        return
    if space is not None and expected is not None and space.is_comparable_to(expected):
        return
    raise SpaceMismatchError(
        f"The vectors are in space {space or 'unknown'}, those in the index in "
        f"{expected or 'unknown'}: they can't be compared. Embed with the model of the index, or "
        "rebuild the index."
    )


def _validate(values: ArrayLike, space: str | Space | None) -> _VectorBatch:
    """Returns the values as vectors of a known space.

    Raises:
        SpaceMismatchError: the vectors carry another space than `space`.
        IndexMismatchError: the space is unknown, or the array has another shape.
        ValueError: a vector isn't finite.
    """
    info = values.info if isinstance(values, Vectors) else None
    if isinstance(space, str):
        space = Space.parse(space)
    if space is None and (info is None or info.source is None):
        raise IndexMismatchError(
            "A plain array doesn't carry the space of its vectors. Pass the array that the client "
            "returned, or `space=`."
        )
    if info is not None and info.space is not None:
        if space is not None:
            _check_space(info.space, space)
        space = info.space
    with np.errstate(over="ignore"):  # an overflow to infinity is reported below
        array = np.asarray(values, dtype=np.float32)
    if array.ndim not in (1, 2) or not array.shape[-1]:
        raise IndexMismatchError(
            f"An array of shape {array.shape} doesn't hold vectors. Its shape must be (n, dim) or "
            "(dim,)."
        )
    if not np.isfinite(array).all():
        raise ValueError("A vector isn't finite: it holds NaN or infinity. Remove it.")
    return _VectorBatch(np.atleast_2d(array), space, info.model if info else "")


def _copy_json(metadata: Sequence[Any], n: int) -> list[Any]:
    """Returns copies of n JSON values, in the form that `load` returns.

    Raises:
        IndexMismatchError: the number of values isn't n.
        ValueError: a value isn't JSON.
    """
    if isinstance(metadata, str | bytes | Mapping):
        raise IndexMismatchError("`metadata` is a single value. Pass a list with one per vector.")
    if len(metadata) != n:
        raise IndexMismatchError(
            f"There are {len(metadata)} metadata values for {n} vectors. Pass one per vector."
        )
    values = list(metadata)
    for i, value in enumerate(values):
        if type(value) is str or value is None:
            continue
        try:
            values[i] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"Metadata {i} isn't a JSON value: {error}.") from None
    return values


def _search(data: IndexData, queries: Float32, k: int) -> list[list[Hit]]:
    scores, positions = data.vectors.search(queries, min(k, data.vectors.ntotal))
    # Rounding can push the cosine of equal vectors slightly above 1.
    scores = np.clip(scores, -1.0, 1.0)
    return [
        [
            Hit(score, position, data.metadata[position])
            for score, position in sorted(
                zip(query_scores, query_positions, strict=True), key=lambda hit: (-hit[0], hit[1])
            )
        ]
        for query_scores, query_positions in zip(scores.tolist(), positions.tolist(), strict=True)
    ]
