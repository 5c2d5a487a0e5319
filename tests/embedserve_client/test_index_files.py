"""Saved indexes: complete, damaged, and replaced while they are read."""

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
from embedserve_client.vectors import VectorInfo, Vectors


def as_vectors(values: Any) -> Vectors:
    return Vectors(values, VectorInfo(Space("f00d", "fp32"), "org/model", "service"))


def index_of(values: Any, metadata: Any = None) -> VectorIndex:
    index = VectorIndex()
    index.add(as_vectors(values), range(len(values)) if metadata is None else metadata)
    return index


def save_index(path: Path, n: int = 3) -> dict[str, Path]:
    """Saves an index of n vectors and returns its files by the first part of their names."""
    index_of(np.eye(max(n, 2))[:n], [f"text {i}" for i in range(n)]).save(path)
    return {file.name.partition("-")[0].partition(".")[0]: file for file in path.iterdir()}


def test_directory_holds_no_files_of_earlier_saves(tmp_path: Path) -> None:
    for n in (2, 3, 4):
        files = save_index(tmp_path, n)
        assert set(files) == {"vectors", "metadata", "manifest", "save"}
        manifest = json.loads(files["manifest"].read_bytes())
        assert (manifest["version"], manifest["space"], manifest["count"]) == (2, "f00d-fp32", n)
        assert (manifest["dim"], manifest["model"]) == (max(n, 2), "org/model")
        assert len(VectorIndex.load(tmp_path)) == n


def rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("name", ["vectors", "metadata"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "was truncated or changed"),
        (lambda raw: bytes([raw[0] ^ 1]) + raw[1:], "was truncated or changed"),
        (None, "The index lacks"),
    ],
)
def test_damaged_index_is_a_file_error(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, message: str
) -> None:
    file = save_index(tmp_path)[name]
    if change is None:
        file.unlink()
    else:
        rewrite(file, change)
    with pytest.raises(FileError, match=message) as raised:
        VectorIndex.load(tmp_path)
    assert file.name in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1"),
        ({"format": "something"}, "something other"),
        ({"count": 4}, "exact index of 4 vectors of 3 dimensions"),
        ({"dim": 4}, "of 4 dimensions"),
        ({"dim": None}, "`dim` is None"),
        ({"space": "nonsense"}, "isn't a space"),
        ({"vectors_sha256": "../../etc"}, "isn't a SHA-256"),
        ({"metadata_sha256": None}, "doesn't describe"),
        ({"more": 1}, "doesn't describe"),
    ],
)
def test_inconsistent_manifest_is_a_file_error(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    manifest = save_index(tmp_path)["manifest"]
    rewrite(manifest, lambda raw: json.dumps({**json.loads(raw), **change}).encode())
    with pytest.raises(FileError, match=message):
        VectorIndex.load(tmp_path)


def test_other_directories_are_neither_read_nor_overwritten(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no index"):
        VectorIndex.load(tmp_path)
    for content in (b"{}", b"[", b"[]"):
        (tmp_path / "manifest.json").write_bytes(content)
        for access in (VectorIndex.load, index_of([[1, 0]]).save):
            with pytest.raises(FileError, match=r"something other|isn't JSON"):
                access(tmp_path)
        assert (tmp_path / "manifest.json").read_bytes() == content
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="can't be written"):
        index_of([[1, 0]]).save(tmp_path / "file")


def test_other_index_type_is_a_file_error(tmp_path: Path) -> None:
    files = save_index(tmp_path)
    other = faiss.IndexFlatL2(3)
    other.add(np.eye(3, dtype=np.float32))
    raw = faiss.serialize_index(other).tobytes()
    digest = hashlib.sha256(raw).hexdigest()
    (tmp_path / f"vectors-{digest[:16]}.faiss").write_bytes(raw)
    rewrite(
        files["manifest"],
        lambda raw: json.dumps({**json.loads(raw), "vectors_sha256": digest}).encode(),
    )
    with pytest.raises(FileError, match="isn't an exact index"):
        VectorIndex.load(tmp_path)


def test_interrupted_save_keeps_the_old_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_index(tmp_path, 2)
    replace = os.replace
    for successful_calls in range(3):
        remaining = iter(range(successful_calls))

        def replace_or_exit(src: Any, dst: Any, remaining: Any = remaining) -> None:
            if next(remaining, None) is None:
                raise SystemExit
            replace(src, dst)

        monkeypatch.setattr(os, "replace", replace_or_exit)
        with pytest.raises(SystemExit):
            save_index(tmp_path, 3)
        assert len(VectorIndex.load(tmp_path)) == 2
    monkeypatch.undo()
    save_index(tmp_path, 3)
    assert len(VectorIndex.load(tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 4  # the temporary files are removed


def test_load_during_concurrent_saves_returns_one_of_the_indexes(tmp_path: Path) -> None:
    indexes = [index_of(np.eye(4)[:n], list(range(n))) for n in (2, 3, 4)]
    indexes[0].save(tmp_path)
    done = threading.Event()
    failures = list[BaseException]()

    def keep_saving(index: VectorIndex) -> None:
        try:
            while not done.is_set():
                index.save(tmp_path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=keep_saving, args=(index,)) for index in indexes]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            loaded = VectorIndex.load(tmp_path)
            assert [hit.metadata for hit in loaded.search(as_vectors([0, 1, 0, 0]), 1)] == [1]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
