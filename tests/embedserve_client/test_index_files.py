"""An index as files: whole, or told what is wrong with it."""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from embedserve_client.errors import FileError
from embedserve_client.index import VectorIndex
from embedserve_client.space import Space
from embedserve_client.vectors import About, Vectors


def of(values: Any) -> Vectors:
    return Vectors(values, About(Space("f00d", "fp32"), "org/model", "service"))


def index_of(values: Any, metadata: Any = None) -> VectorIndex:
    index = VectorIndex()
    index.add(of(values), range(len(values)) if metadata is None else metadata)
    return index


def saved(folder: Path, n: int = 3) -> dict[str, Path]:
    """A saved index of n vectors; its files by what they are."""
    index_of(np.eye(max(n, 2))[:n], [f"text {i}" for i in range(n)]).save(folder)
    return {file.name.partition("-")[0].partition(".")[0]: file for file in folder.iterdir()}


def test_a_folder_holds_three_files_and_no_old_ones(tmp_path: Path) -> None:
    for n in (2, 3, 4):
        files = saved(tmp_path, n)
        assert set(files) == {"vectors", "metadata", "about", "save"}
        about = json.loads(files["about"].read_bytes())
        assert (about["version"], about["space"], about["count"]) == (1, "f00d-fp32", n)
        assert (about["dim"], about["model"]) == (max(n, 2), "org/model")
        assert len(VectorIndex.load(tmp_path)) == n


def spoil(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("name", ["vectors", "metadata"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], "cut short or changed"),
        (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "cut short or changed"),
        (None, "misses"),
    ],
)
def test_a_torn_folder_is_told(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, words: str
) -> None:
    file = saved(tmp_path)[name]
    if change is None:
        file.unlink()
    else:
        spoil(file, change)
    with pytest.raises(FileError, match=words) as told:
        VectorIndex.load(tmp_path)
    assert file.name in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "something"}, "something else"),
        ({"count": 4}, "exact index of 4 vectors of 3 dimensions"),
        ({"dim": 4}, "of 4 dimensions"),
        ({"dim": None}, "`dim` is None"),
        ({"space": "nonsense"}, "isn't a space"),
        ({"vectors_sha256": "../../etc"}, "isn't a SHA-256"),
        ({"metadata_sha256": None}, "doesn't describe"),
        ({"more": 1}, "doesn't describe"),
    ],
)
def test_an_about_that_does_not_fit_is_told(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    about = saved(tmp_path)["about"]
    spoil(about, lambda raw: json.dumps({**json.loads(raw), **change}).encode())
    with pytest.raises(FileError, match=words):
        VectorIndex.load(tmp_path)


def test_folders_of_others_are_neither_read_nor_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no index"):
        VectorIndex.load(tmp_path)
    for content in (b"{}", b"[", b"[]"):
        (tmp_path / "about.json").write_bytes(content)
        for act in (VectorIndex.load, index_of([[1, 0]]).save):
            with pytest.raises(FileError, match=r"something else|isn't JSON"):
                act(tmp_path)
        assert (tmp_path / "about.json").read_bytes() == content
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="can't be written"):
        index_of([[1, 0]]).save(tmp_path / "file")


def test_an_index_of_another_kind_is_told(tmp_path: Path) -> None:
    files = saved(tmp_path)
    other = faiss.IndexFlatL2(3)
    other.add(np.eye(3, dtype=np.float32))
    raw = faiss.serialize_index(other).tobytes()
    digest = hashlib.sha256(raw).hexdigest()
    (tmp_path / f"vectors-{digest[:16]}.faiss").write_bytes(raw)
    spoil(
        files["about"],
        lambda raw: json.dumps({**json.loads(raw), "vectors_sha256": digest}).encode(),
    )
    with pytest.raises(FileError, match="isn't the exact index"):
        VectorIndex.load(tmp_path)


def test_a_writer_that_ends_in_the_middle_leaves_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 2)
    replaced, replace = [0], os.replace
    for survives in range(3):

        def dies(src: Any, dst: Any, survives: int = survives) -> None:
            if replaced[0] == survives:
                raise SystemExit
            replaced[0] += 1
            replace(src, dst)

        replaced[0] = 0
        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(SystemExit):
            saved(tmp_path, 3)
        assert len(VectorIndex.load(tmp_path)) == 2
    monkeypatch.undo()
    saved(tmp_path, 3)
    assert len(VectorIndex.load(tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 4  # what was left lying is gone


def test_who_loads_while_others_save_finds_one_of_them(tmp_path: Path) -> None:
    indexes = [index_of(np.eye(4)[:n], list(range(n))) for n in (2, 3, 4)]
    indexes[0].save(tmp_path)
    done = threading.Event()
    failed = list[BaseException]()

    def keep_saving(index: VectorIndex) -> None:
        try:
            while not done.is_set():
                index.save(tmp_path)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=keep_saving, args=(index,)) for index in indexes]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            loaded = VectorIndex.load(tmp_path)
            assert [hit.metadata for hit in loaded.search(of([0, 1, 0, 0]), 1)] == [1]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
