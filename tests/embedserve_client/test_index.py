"""Vector indexes: exact results, comparable spaces, and saved files."""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from embedserve_client.client import Client
from embedserve_client.errors import HTTPError, IndexMismatchError, SpaceMismatchError
from embedserve_client.hit import Hit
from embedserve_client.index import VectorIndex
from embedserve_client.space import Space
from embedserve_client.vectors import Float32, VectorInfo, Vectors
from serve_app.errors import Overloaded
from tests.clients.app_server import (
    DIM,
    PROMPTS,
    SPEC,
    TEXTS,
    AppServer,
    expected_vectors,
    run_app_server,
)

FP32 = Space("f00d", "fp32")
TEXT_LIST = sorted(set(TEXTS))

#: The square of 2**100 overflows float32, that of 2**-100 underflows.
numbers = st.integers(-9, 9).map(float) | st.sampled_from([2.0**100, -(2.0**-100), 0.3, 1e-40])
rows = st.integers(1, 9).flatmap(
    lambda dim: hnp.arrays(
        np.float32, st.tuples(st.integers(1, 40), st.just(dim)), elements=numbers
    )
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def server() -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


@pytest.fixture
def client(server: AppServer) -> Iterator[Client]:
    server.backend.error = None
    server.backend.groups.clear()
    with Client(server.url) as client:
        yield client


def as_vectors(values: Any, space: Space | None = FP32, model: str = "org/model") -> Vectors:
    return Vectors(values, VectorInfo(space, model, "service"))


def index_of(values: Any, metadata: Any = None, space: Space | None = FP32) -> VectorIndex:
    index = VectorIndex()
    index.add(as_vectors(values, space), range(len(values)) if metadata is None else metadata)
    return index


def cosines(query: Float32, among: Float32) -> Any:
    """A reference implementation: float64, scaled first against overflow and underflow."""

    def unit(values: Any) -> Any:
        values = values.astype(np.float64)
        largest = np.abs(values).max(axis=-1, keepdims=True)
        values = values / np.where(largest == 0, 1, largest)
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        return values / np.where(length == 0, 1, length)

    return unit(among) @ unit(query)


@given(rows, st.data())
def test_search_equals_brute_force(values: Float32, data: st.DataObject) -> None:
    dim = values.shape[1]
    query = data.draw(hnp.arrays(np.float32, (dim,), elements=numbers))
    k = data.draw(st.integers(1, len(values) + 3))
    hits = index_of(values).search(as_vectors(query), k)
    expected = cosines(query, values)
    assert len(hits) == min(k, len(values))
    assert len({hit.position for hit in hits}) == len(hits)
    assert all(hit.metadata == hit.position for hit in hits)
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(expected)[::-1][: len(hits)], atol=1e-6
    )
    np.testing.assert_allclose(
        [hit.score for hit in hits], expected[[hit.position for hit in hits]], atol=1e-6
    )


@given(rows, st.integers(1, 50))
def test_multiple_queries_equal_single_queries(values: Float32, k: int) -> None:
    index = index_of(values)
    together = index.search(as_vectors(values), k)
    assert len(together) == len(values)
    for query, hits in zip(values, together, strict=True):
        single = index.search(as_vectors(query), k)
        np.testing.assert_allclose([h.score for h in hits], [h.score for h in single], atol=1e-6)


def test_scores_are_cosines_and_ties_keep_their_order() -> None:
    index = index_of([[0, 3], [2, 0], [0, 0], [-7, 0], [5, 0]])
    assert index.search(as_vectors([1e-30, 0])) == [
        Hit(1.0, 1, 1),
        Hit(1.0, 4, 4),
        Hit(0.0, 0, 0),
        Hit(0.0, 2, 2),
        Hit(-1.0, 3, 3),
    ]


def test_added_values_are_copies() -> None:
    values, metadata = np.eye(3, dtype=np.float32), {"url": "a", "tags": ("x",)}
    index = VectorIndex()
    index.add(as_vectors(values), [metadata, None, 2])
    values[:], metadata["url"] = 7, "changed"
    index.add(as_vectors([0, 0.5, 0]), ["one more"])
    assert len(index) == 4
    assert index.search(as_vectors([1, 0, 0]), 1) == [Hit(1.0, 0, {"url": "a", "tags": ["x"]})]
    assert [hit.metadata for hit in index.search(as_vectors([0, 1, 0]), 2)] == [None, "one more"]


def test_string_queries_are_embedded_as_queries(client: Client, server: AppServer) -> None:
    index = VectorIndex.build(TEXT_LIST, client)
    assert (len(index), index.dim, index.model) == (len(TEXT_LIST), DIM, SPEC.name)
    assert index.space == Space.parse(SPEC.space_id)
    hits = index.search("the lazy dog", 2)
    expected = (
        expected_vectors(*TEXT_LIST, prompt="document")
        @ expected_vectors("the lazy dog", prompt="query")[0]
    )
    assert [hit.position for hit in hits] == np.argsort(-expected)[:2].tolist()
    assert [hit.metadata for hit in hits] == [TEXT_LIST[hit.position] for hit in hits]
    assert [group.prompt for group in server.backend.groups] == [
        PROMPTS["document"],
        PROMPTS["query"],
    ]


def test_queries_have_the_dimensions_of_the_texts(client: Client, tmp_path: Path) -> None:
    index = VectorIndex.build(TEXT_LIST, client, metadata=[1, 2, 3, 4], dimensions=16)
    assert index.dim == 16
    hits = index.search("the lazy dog")
    index.save(tmp_path)
    assert VectorIndex.load(tmp_path, client).search("the lazy dog") == hits


def test_service_errors_are_raised(client: Client, server: AppServer) -> None:
    index = VectorIndex.build(TEXT_LIST, client)
    server.backend.error = Overloaded("Full.", 60)
    with pytest.raises(HTTPError, match="Full"):
        index.search("a")
    with pytest.raises(HTTPError, match="Full"):
        VectorIndex.build(["a"], client)


def test_metadata_is_checked_before_texts_are_embedded(client: Client, server: AppServer) -> None:
    with pytest.raises(IndexMismatchError, match="1 metadata values for 2 vectors"):
        VectorIndex.build(["a", "b"], client, metadata=["a"])
    with pytest.raises(ValueError, match="one string"):
        VectorIndex.build("ab", client)
    assert server.backend.groups == []


def test_empty_index_has_no_hits(client: Client, tmp_path: Path) -> None:
    for index in (VectorIndex.build([], client), VectorIndex()):
        index.save(tmp_path)
        for empty in (index, VectorIndex.load(tmp_path)):
            assert (len(empty), empty.dim, empty.space) == (0, 0, None)
            assert empty.search(as_vectors([1, 2])) == []
            assert empty.search(as_vectors([[1, 2], [3, 4]])) == [[], []]
            empty.add(as_vectors([[1, 2]]), ["a"])
            assert len(empty) == 1


@pytest.mark.parametrize("other", ["f00d-fp32", "f00d-bf16", "f00d-fp16"])
def test_float_precisions_of_a_family_share_an_index(other: str) -> None:
    index = index_of([[1, 0]])
    index.add(as_vectors([[0, 1]], Space.parse(other)), ["new"])
    assert index.search(as_vectors([0, 1], Space.parse(other)), 1)[0].metadata == "new"
    assert index.search(np.array([0, 1]), 1, space=other)[0].metadata == "new"


@pytest.mark.parametrize("other", ["f00d-int8", "beef-fp32", None])
def test_incomparable_spaces_are_rejected(other: str | None) -> None:
    space = Space.parse(other) if other else None
    index = index_of([[1, 0]])
    with pytest.raises(SpaceMismatchError, match="f00d-fp32"):
        index.add(as_vectors([[0, 1]], space), ["new"])
    with pytest.raises(SpaceMismatchError, match="rebuild the index"):
        index.search(as_vectors([0, 1], space))
    if other:
        with pytest.raises(SpaceMismatchError):
            index.search(np.array([0, 1]), space=other)
        with pytest.raises(SpaceMismatchError):
            index.search(as_vectors([0, 1]), space=other)
    assert len(index) == 1


def test_unknown_space_is_only_comparable_to_itself() -> None:
    index = index_of([[1, 0]], space=None)
    index.add(as_vectors([[0, 1]], None), ["b"])
    assert len(index.search(as_vectors([1, 1], None))) == 2
    with pytest.raises(SpaceMismatchError, match="unknown"):
        index.search(as_vectors([1, 1]))


def test_client_must_have_the_space_of_the_index(client: Client, tmp_path: Path) -> None:
    index_of(np.ones((1, DIM))).save(tmp_path)
    index = VectorIndex.load(tmp_path, client)
    with pytest.raises(SpaceMismatchError):
        index.search("a")
    with pytest.raises(SpaceMismatchError):
        VectorIndex.load(tmp_path, client)  # its space is known after the first search


def test_plain_arrays_need_a_space() -> None:
    index, plain = VectorIndex(), np.eye(2)
    with pytest.raises(IndexMismatchError, match="space="):
        index.add(plain, ["a", "b"])
    index.add(plain, ["a", "b"], space=FP32)
    with pytest.raises(IndexMismatchError, match="space="):
        index.search(plain[0])
    with pytest.raises(IndexMismatchError, match="space="):
        index.search(as_vectors(plain) * 2)  # a computed array is plain
    assert index.search([0.0, 2.0], 1, space="f00d-fp32") == [Hit(1.0, 1, "b")]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda i: i.add(as_vectors([[1, 2, 3]]), ["a"]), IndexMismatchError, "3 dimensions, .* 2"),
        (lambda i: i.search(as_vectors([1, 2, 3])), IndexMismatchError, "dimensions"),
        (
            lambda i: i.add(as_vectors([[1, 2]]), []),
            IndexMismatchError,
            "0 metadata values",
        ),
        (lambda i: i.add(as_vectors([[1, 2]]), "a"), IndexMismatchError, "Pass a list"),
        (lambda i: i.add(as_vectors([[1, 2]]), {"a": 1}), IndexMismatchError, "Pass a list"),
        (lambda i: i.add(as_vectors([[1, 2]] * 2), ["a", {1, 2}]), ValueError, "Metadata 1 isn't"),
        (lambda i: i.add(as_vectors([[1, 2]]), [float("nan")]), ValueError, "Metadata 0 isn't"),
        (lambda i: i.add(as_vectors([[1, float("nan")]]), ["a"]), ValueError, "isn't finite"),
        (lambda i: i.search(as_vectors([1, float("inf")])), ValueError, "isn't finite"),
        (lambda i: i.search([1e300, 1], space="f00d-fp32"), ValueError, "isn't finite"),
        (lambda i: i.search(as_vectors([[[1.0]]])), IndexMismatchError, "shape"),
        (lambda i: i.search(as_vectors(1.0)), IndexMismatchError, "shape"),
        (lambda i: i.search(as_vectors([1, 2]), 0), ValueError, "at least 1"),
        (lambda i: i.search("text"), IndexMismatchError, "client=client"),
        (lambda i: i.search(np.ones(2), space="nonsense"), ValueError, "<family>-<precision>"),
    ],
)
def test_invalid_arguments_are_rejected_and_change_nothing(
    call: Callable[[VectorIndex], object], error: type[Exception], message: str
) -> None:
    index = index_of([[1, 0]])
    with pytest.raises(error, match=message):
        call(index)
    assert len(index) == 1
    assert index.search(as_vectors([1, 0])) == [Hit(1.0, 0, 0)]


@given(st.lists(json_values, min_size=1, max_size=20), st.sampled_from([FP32, None]))
@settings(max_examples=settings().max_examples // 2)
def test_saved_index_round_trips(metadata: list[Any], space: Space | None) -> None:
    values = np.random.default_rng(len(metadata)).standard_normal((len(metadata), 5))
    index = index_of(values, metadata, space)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "new" / "ü"
        index.save(path)
        loaded = VectorIndex.load(path)
    assert (len(loaded), loaded.space, loaded.model) == (len(index), space, "org/model")
    queries = as_vectors(values[:3], space)
    assert loaded.search(queries, 50) == index.search(queries, 50)
    loaded.add(as_vectors(values, space), metadata)
    assert len(loaded) == 2 * len(index)


def test_lone_surrogates_and_line_separators_round_trip(tmp_path: Path) -> None:
    surrogate, separators = "lone \ud83d", "a\u2028b\u0085c\r\n"
    index_of(np.eye(2), [surrogate, {separators: surrogate}]).save(tmp_path)
    hits = VectorIndex.load(tmp_path).search(as_vectors([2, 1]))
    assert [hit.metadata for hit in hits] == [surrogate, {separators: surrogate}]


def test_search_during_concurrent_adds() -> None:
    index = index_of(np.ones((1, 8)))
    unit = np.eye(8)
    failures = list[BaseException]()
    finished = threading.Event()

    def search() -> None:
        try:
            while not finished.is_set():
                for hit in index.search(as_vectors(unit[1]), 100_000):
                    assert hit.metadata == hit.position
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        n = len(index)
        index.add(as_vectors(unit), range(n, n + 8))
    finished.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(index) == 2401


def test_missing_faiss_is_named_with_the_extra() -> None:
    code = """
import sys
sys.modules["faiss"] = None
from embedserve_client import Space, VectorIndex
try:
    VectorIndex().add([[1.0, 2.0]], ["a"], space=Space("f00d", "fp32"))
except ImportError as error:
    print(error)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'embedserve-client[search]'" in process.stdout
