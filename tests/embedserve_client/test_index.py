"""Exact search: right, held to one space, and whole on disk."""

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
from embedserve_client.errors import HTTPError, IndexMismatch, SpaceMismatch
from embedserve_client.index import Hit, VectorIndex
from embedserve_client.space import Space
from embedserve_client.vectors import About, Float32, Vectors
from serve_app.errors import Overloaded
from tests.clients.served import DIM, PROMPTS, SPEC, TEXTS, Served, serve, vectors

FP32 = Space("f00d", "fp32")
TEXT_LIST = sorted(set(TEXTS))

#: At 2**100 a float32's square is infinite, at 2**-100 it is 0.
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
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    served.lookup.error = None
    served.lookup.groups.clear()
    with Client(served.url) as client:
        yield client


def of(values: Any, space: Space | None = FP32, model: str = "org/model") -> Vectors:
    return Vectors(values, About(space, model, "service"))


def index_of(values: Any, metadata: Any = None, space: Space | None = FP32) -> VectorIndex:
    index = VectorIndex()
    index.add(of(values, space), range(len(values)) if metadata is None else metadata)
    return index


def cosines(query: Float32, among: Float32) -> Any:
    """By another way: at float64, with each vector scaled first so that nothing is lost."""

    def unit(values: Any) -> Any:
        values = values.astype(np.float64)
        largest = np.abs(values).max(axis=-1, keepdims=True)
        values = values / np.where(largest == 0, 1, largest)
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        return values / np.where(length == 0, 1, length)

    return unit(among) @ unit(query)


@given(rows, st.data())
def test_it_finds_what_comparing_with_all_finds(values: Float32, data: st.DataObject) -> None:
    dim = values.shape[1]
    query = data.draw(hnp.arrays(np.float32, (dim,), elements=numbers))
    k = data.draw(st.integers(1, len(values) + 3))
    hits = index_of(values).search(of(query), k)
    expected = cosines(query, values)
    assert len(hits) == min(k, len(values))
    assert len({hit.place for hit in hits}) == len(hits)
    assert all(hit.metadata == hit.place for hit in hits)
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(expected)[::-1][: len(hits)], atol=1e-6
    )
    np.testing.assert_allclose(
        [hit.score for hit in hits], expected[[hit.place for hit in hits]], atol=1e-6
    )


@given(rows, st.integers(1, 50))
def test_many_queries_get_what_each_gets_alone(values: Float32, k: int) -> None:
    index = index_of(values)
    together = index.search(of(values), k)
    assert len(together) == len(values)
    for query, hits in zip(values, together, strict=True):
        alone = index.search(of(query), k)
        np.testing.assert_allclose([h.score for h in hits], [h.score for h in alone], atol=1e-6)


def test_scores_are_cosines_and_of_equal_ones_the_first_comes_first() -> None:
    index = index_of([[0, 3], [2, 0], [0, 0], [-7, 0], [5, 0]])
    assert index.search(of([1e-30, 0])) == [
        Hit(1.0, 1, 1),
        Hit(1.0, 4, 4),
        Hit(0.0, 0, 0),
        Hit(0.0, 2, 2),
        Hit(-1.0, 3, 3),
    ]


def test_what_is_added_is_copied_and_stays() -> None:
    values, about = np.eye(3, dtype=np.float32), {"url": "a", "tags": ("x",)}
    index = VectorIndex()
    index.add(of(values), [about, None, 2])
    values[:], about["url"] = 7, "changed"
    index.add(of([0, 0.5, 0]), ["one more"])
    assert len(index) == 4
    assert index.search(of([1, 0, 0]), 1) == [Hit(1.0, 0, {"url": "a", "tags": ["x"]})]
    assert [hit.metadata for hit in index.search(of([0, 1, 0]), 2)] == [None, "one more"]


def test_texts_are_found_by_texts(client: Client, served: Served) -> None:
    index = VectorIndex.build(TEXT_LIST, client)
    assert (len(index), index.dim, index.model) == (len(TEXT_LIST), DIM, SPEC.name)
    assert index.space == Space.parse(SPEC.space_id)
    hits = index.search("the lazy dog", 2)
    expected = vectors(*TEXT_LIST, prompt="document") @ vectors("the lazy dog", prompt="query")[0]
    assert [hit.place for hit in hits] == np.argsort(-expected)[:2].tolist()
    assert [hit.metadata for hit in hits] == [TEXT_LIST[hit.place] for hit in hits]
    assert [group.prompt for group in served.lookup.groups] == [
        PROMPTS["document"],
        PROMPTS["query"],
    ]


def test_queries_are_cut_as_the_texts_were(client: Client, tmp_path: Path) -> None:
    index = VectorIndex.build(TEXT_LIST, client, metadata=[1, 2, 3, 4], dimensions=16)
    assert index.dim == 16
    found = index.search("the lazy dog")
    index.save(tmp_path)
    assert VectorIndex.load(tmp_path, client).search("the lazy dog") == found


def test_the_services_errors_are_the_callers(client: Client, served: Served) -> None:
    index = VectorIndex.build(TEXT_LIST, client)
    served.lookup.error = Overloaded("Full.", 60)
    with pytest.raises(HTTPError, match="Full"):
        index.search("a")
    with pytest.raises(HTTPError, match="Full"):
        VectorIndex.build(["a"], client)


def test_metadata_is_counted_before_anything_is_embedded(client: Client, served: Served) -> None:
    with pytest.raises(IndexMismatch, match=r"1 values of metadata came for 2 vectors"):
        VectorIndex.build(["a", "b"], client, metadata=["a"])
    with pytest.raises(ValueError, match="one string"):
        VectorIndex.build("ab", client)
    assert served.lookup.groups == []


def test_nothing_is_found_in_an_empty_index(client: Client, tmp_path: Path) -> None:
    for index in (VectorIndex.build([], client), VectorIndex()):
        index.save(tmp_path)
        for empty in (index, VectorIndex.load(tmp_path)):
            assert (len(empty), empty.dim, empty.space) == (0, 0, None)
            assert empty.search(of([1, 2])) == []
            assert empty.search(of([[1, 2], [3, 4]])) == [[], []]
            empty.add(of([[1, 2]]), ["a"])
            assert len(empty) == 1


@pytest.mark.parametrize("other", ["f00d-fp32", "f00d-bf16", "f00d-fp16"])
def test_float_precisions_of_one_family_meet(other: str) -> None:
    index = index_of([[1, 0]])
    index.add(of([[0, 1]], Space.parse(other)), ["new"])
    assert index.search(of([0, 1], Space.parse(other)), 1)[0].metadata == "new"
    assert index.search(np.array([0, 1]), 1, space=other)[0].metadata == "new"


@pytest.mark.parametrize("other", ["f00d-int8", "beef-fp32", None])
def test_other_spaces_are_refused(other: str | None) -> None:
    space = Space.parse(other) if other else None
    index = index_of([[1, 0]])
    with pytest.raises(SpaceMismatch, match="f00d-fp32"):
        index.add(of([[0, 1]], space), ["new"])
    with pytest.raises(SpaceMismatch, match="build it anew"):
        index.search(of([0, 1], space))
    if other:
        with pytest.raises(SpaceMismatch):
            index.search(np.array([0, 1]), space=other)
        with pytest.raises(SpaceMismatch):
            index.search(of([0, 1]), space=other)
    assert len(index) == 1


def test_a_space_that_nobody_tells_meets_itself_only() -> None:
    index = index_of([[1, 0]], space=None)
    index.add(of([[0, 1]], None), ["b"])
    assert len(index.search(of([1, 1], None))) == 2
    with pytest.raises(SpaceMismatch, match="unknown"):
        index.search(of([1, 1]))


def test_a_clients_space_has_to_be_the_indexs(client: Client, tmp_path: Path) -> None:
    index_of(np.ones((1, DIM))).save(tmp_path)
    fresh = VectorIndex.load(tmp_path, client)
    with pytest.raises(SpaceMismatch):
        fresh.search("a")
    with pytest.raises(SpaceMismatch):
        VectorIndex.load(tmp_path, client)  # which knows its space by now


def test_plain_arrays_have_to_say_their_space() -> None:
    index, plain = VectorIndex(), np.eye(2)
    with pytest.raises(IndexMismatch, match="space="):
        index.add(plain, ["a", "b"])
    index.add(plain, ["a", "b"], space=FP32)
    with pytest.raises(IndexMismatch, match="space="):
        index.search(plain[0])
    with pytest.raises(IndexMismatch, match="space="):
        index.search(of(plain) * 2)  # what is computed from vectors tells nothing
    assert index.search([0.0, 2.0], 1, space="f00d-fp32") == [Hit(1.0, 1, "b")]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda i: i.add(of([[1, 2, 3]]), ["a"]), IndexMismatch, "length 3 .* have 2"),
        (lambda i: i.search(of([1, 2, 3])), IndexMismatch, "dimensions"),
        (lambda i: i.add(of([[1, 2]]), []), IndexMismatch, "0 values .* 1 vectors"),
        (lambda i: i.add(of([[1, 2]]), "a"), IndexMismatch, "Give a list"),
        (lambda i: i.add(of([[1, 2]]), {"a": 1}), IndexMismatch, "Give a list"),
        (lambda i: i.add(of([[1, 2]] * 2), ["a", {1, 2}]), ValueError, "Metadata 1 isn't"),
        (lambda i: i.add(of([[1, 2]]), [float("nan")]), ValueError, "Metadata 0 isn't"),
        (lambda i: i.add(of([[1, float("nan")]]), ["a"]), ValueError, "isn't finite"),
        (lambda i: i.search(of([1, float("inf")])), ValueError, "isn't finite"),
        (lambda i: i.search([1e300, 1], space="f00d-fp32"), ValueError, "isn't finite"),
        (lambda i: i.search(of([[[1.0]]])), IndexMismatch, "shape"),
        (lambda i: i.search(of(1.0)), IndexMismatch, "shape"),
        (lambda i: i.search(of([1, 2]), 0), ValueError, "1 or more"),
        (lambda i: i.search("text"), IndexMismatch, "client=client"),
        (lambda i: i.search(np.ones(2), space="nonsense"), ValueError, "<family>-<precision>"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    call: Callable[[VectorIndex], object], error: type[Exception], words: str
) -> None:
    index = index_of([[1, 0]])
    with pytest.raises(error, match=words):
        call(index)
    assert len(index) == 1
    assert index.search(of([1, 0])) == [Hit(1.0, 0, 0)]


@given(st.lists(json_values, min_size=1, max_size=20), st.sampled_from([FP32, None]))
@settings(max_examples=50)
def test_what_is_loaded_is_what_was_saved(metadata: list[Any], space: Space | None) -> None:
    values = np.random.default_rng(len(metadata)).standard_normal((len(metadata), 5))
    index = index_of(values, metadata, space)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "new" / "ü"
        index.save(folder)
        loaded = VectorIndex.load(folder)
    assert (len(loaded), loaded.space, loaded.model) == (len(index), space, "org/model")
    queries = of(values[:3], space)
    assert loaded.search(queries, 50) == index.search(queries, 50)
    loaded.add(of(values, space), metadata)
    assert len(loaded) == 2 * len(index)


def test_a_text_that_is_not_unicode_is_kept(tmp_path: Path) -> None:
    half, line = "half a pair: \ud83d", "lines\u2028that are\u0085none\r\n"
    index_of(np.eye(2), [half, {line: half}]).save(tmp_path)
    hits = VectorIndex.load(tmp_path).search(of([2, 1]))
    assert [hit.metadata for hit in hits] == [half, {line: half}]


def test_it_is_searched_while_it_grows() -> None:
    index = index_of(np.ones((1, 8)))
    unit = np.eye(8)
    failed = list[BaseException]()
    growing = threading.Event()

    def search() -> None:
        try:
            while not growing.is_set():
                for hit in index.search(of(unit[1]), 100_000):
                    assert hit.metadata == hit.place
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        n = len(index)
        index.add(of(unit), range(n, n + 8))
    growing.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(index) == 2401


def test_faiss_is_named_where_it_is_missing() -> None:
    code = """
import sys
sys.modules["faiss"] = None
from embedserve_client import Space, VectorIndex
try:
    VectorIndex().add([[1.0, 2.0]], ["a"], space=Space("f00d", "fp32"))
except ImportError as error:
    print(error)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'embedserve-client[search]'" in printed.stdout
