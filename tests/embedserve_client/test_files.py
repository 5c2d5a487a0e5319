"""Files of texts into files of vectors: every kind, interrupted and gone on with."""

import asyncio
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from embedserve_client.base import How
from embedserve_client.errors import FileError, HTTPError, NetworkError, SpaceMismatch
from embedserve_client.files.job import FileJob, Run
from embedserve_client.files.source import open_source
from embedserve_client.space import Space
from embedserve_client.vectors import About, Vectors
from tests.embedserve_client.scripted import SPACE, vector

N = 1000
#: What is awkward in each format: quotes, commas, line ends inside of a field, other scripts.
TEXTS = [f'{i} "quoted", 北京 and\ttab' for i in range(N)]
TARGETS = ["npy", "jsonl", "parquet"]


class Stub:
    """Computes, until it is to fail: after so many batches, in the space that it is told."""

    def __init__(self, fails_after: int = 10**9, space: str = SPACE) -> None:
        self.texts: list[str] = []
        self.left = fails_after
        self.space = Space.parse(space)
        self.error: Exception = NetworkError("Nobody answers.")

    async def embed(self, texts: Sequence[str], **how: Unpack[How]) -> Vectors:
        await asyncio.sleep(0.001 * (len(self.texts) % 3))  # not in order
        self.left -= 1
        if self.left < 0:
            raise self.error
        self.texts += texts
        about = About(self.space, "m", "service", 0, (0,))
        return Vectors([vector(text) for text in texts], about)

    async def close(self) -> None: ...


def write(file: Path, texts: Sequence[str]) -> Path:
    """A file of these texts, of the kind that its name says; beside each, its number."""
    match file.suffix:
        case ".txt":
            file.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        case ".jsonl":
            rows = [{"n": i, "text": text} for i, text in enumerate(texts)]
            file.write_bytes(b"\n".join(map(orjson.dumps, rows)))
        case ".csv":
            with file.open("w", encoding="utf-8-sig", newline="") as out:
                writer = csv.writer(out)
                writer.writerow(["n", "text"])
                writer.writerows([i, f"{text}\nsecond line"] for i, text in enumerate(texts))
        case ".parquet":
            table = pyarrow.table({"n": range(len(texts)), "text": list(texts)})
            pyarrow.parquet.write_table(table, file, row_group_size=300)
    return file


def run(
    source: Path, target: Path, embedder: Stub | None = None, column: str = "text", **settings: Any
) -> dict[str, Any]:
    job = FileJob(
        open_source(str(source), None, column),
        str(target),
        {"lane": "bulk"},
        **{"batch_size": 64, "concurrency": 3, **settings},
    )
    running = Run(job, embedder or Stub(), lambda progress: None)
    asyncio.run(running.run())
    return running.summary(1.0)


def read(target: Path) -> Any:
    """The vectors in a file of any kind."""
    match target.suffix:
        case ".npy":
            return np.load(target, mmap_mode="r")
        case ".jsonl":
            rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
            return np.array([row["embedding"] for row in rows], dtype=np.float32)
        case _:
            table = pyarrow.parquet.read_table(target)
            column = table["embedding"].combine_chunks()
            return column.flatten().to_numpy().reshape(len(table), -1)


def expected(source: Path, texts: Sequence[str] = TEXTS) -> Any:
    more = "\nsecond line" if source.suffix == ".csv" else ""
    return np.array([vector(text + more) for text in texts], dtype=np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["txt", "jsonl", "csv", "parquet"])
def test_every_kind_into_every_other(tmp_path: Path, source: str, target: str) -> None:
    given = write(tmp_path / f"in.{source}", TEXTS)
    out = tmp_path / f"out.{target}"
    summary = run(given, out)
    found = read(out)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected(given))
    assert (summary["rows"], summary["space"], summary["model"]) == (N, SPACE, "m")
    assert summary["truncated"] == -(-N // 64)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([given.name, out.name])


def test_what_stood_beside_a_text_stays_beside_it(tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", TEXTS)
    run(given, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["n"], row["text"]) for row in rows] == list(enumerate(TEXTS))
    run(write(tmp_path / "in.parquet", TEXTS), tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["n"].to_pylist() == list(range(N))
    assert table["text"].to_pylist() == TEXTS
    assert table.schema.metadata[b"embedserve.space"] == SPACE.encode()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["txt", "jsonl", "csv", "parquet"])
def test_an_interrupted_run_is_gone_on_with(tmp_path: Path, source: str, target: str) -> None:
    given = write(tmp_path / f"in.{source}", TEXTS)
    out = tmp_path / f"out.{target}"
    asked: list[str] = []
    for fails_after in (3, 0, 5, 10**9):
        embedder = Stub(fails_after)
        try:
            run(given, out, embedder)
        except NetworkError:
            assert not out.exists()
        asked += embedder.texts
    assert np.array_equal(read(out), expected(given))
    # What was written is not asked for again; what was on its way may be.
    assert len(asked) <= N + 3 * 3 * 64
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([given.name, out.name])


@pytest.mark.parametrize("target", TARGETS)
def test_what_came_after_the_last_save_is_cut_off(tmp_path: Path, target: str) -> None:
    """As after a kill: more lies on the disk than the journal knows of."""
    given, out = write(tmp_path / "in.txt", TEXTS), tmp_path / f"out.{target}"
    with pytest.raises(NetworkError):
        run(given, out, Stub(5))
    left = tmp_path / f"out.{target}.partial"
    if left.is_dir():
        (left / "000007.parquet").write_bytes(b"torn")
    else:
        with left.open("ab") as file:
            file.write(b"torn in the middle" * 100_000)  # longer than all that is still to come
    run(given, out)
    assert np.array_equal(read(out), expected(given))
    assert b"torn" not in out.read_bytes()


def test_another_job_is_not_gone_on_with(tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    with pytest.raises(NetworkError):
        run(given, out, Stub(3))
    write(given, TEXTS[:500])
    with pytest.raises(FileError, match="of another job"):
        run(given, out)
    run(given, out, restart=True)
    assert len(read(out)) == 500


def test_two_spaces_do_not_meet_in_one_file(tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    with pytest.raises(NetworkError):
        run(given, out, Stub(3))
    with pytest.raises(SpaceMismatch, match="--restart"):
        run(given, out, Stub(space="f" * 16 + "-fp32"))
    run(given, out, Stub(space=SPACE.replace("fp32", "bf16")))


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    out.write_text("mine")
    with pytest.raises(FileError, match="is there already"):
        run(given, out)
    assert out.read_text() == "mine"
    run(given, out, overwrite=True)
    assert len(read(out)) == N


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    given = write(tmp_path / "in.txt", TEXTS)
    job = FileJob(open_source(str(given), None, "text"), str(tmp_path / "out.npy"), {})
    running = Run(job, Stub(), lambda progress: None)
    with pytest.raises(FileError, match="Another program is writing"):
        Run(job, Stub(), lambda progress: None)
    asyncio.run(running.run())


@pytest.mark.parametrize("target", TARGETS)
def test_records_without_text_are_an_error_or_left_out(tmp_path: Path, target: str) -> None:
    given, out = write(tmp_path / "in.txt", ["a", "", "b", ""]), tmp_path / f"out.{target}"
    with pytest.raises(FileError, match="record 2, is empty"):
        run(given, out)
    assert run(given, out, on_empty="skip")["skipped"] == 2
    assert np.array_equal(read(out), expected(given, ["a", "b"]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.txt", b"", "holds no text"),
        ("in.txt", b"ok\n\xff\n", "isn't UTF-8 near byte 3"),
        ("in.jsonl", b'"a"\n{', "line 2, isn't JSON"),
        ("in.jsonl", b'{"body": "a"}', "no text under 'text' but body"),
        ("in.jsonl", b"3", "no text under 'text'"),
        ("in.csv", b"a,b\n1,2\n", "no column 'text' but a, b"),
        ("in.csv", b"", "no column 'text' but none"),
        ("in.csv", b"text,b\nx\n", "record 1, has 1 values for 2 columns"),
        ("in.parquet", b"nonsense", "Can't read"),
    ],
)
def test_a_file_that_is_wrong_is_told_of(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=words):
        run(tmp_path / name, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nbc\n", "utf-8-sig")
    run(tmp_path / "in.txt", tmp_path / "out.npy")
    assert np.array_equal(read(tmp_path / "out.npy"), expected(tmp_path, ["a", "bc"]))


def test_strings_are_json_lines_too(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n\n"bc"\n')
    run(tmp_path / "in.jsonl", tmp_path / "out.npy")
    assert np.array_equal(read(tmp_path / "out.npy"), expected(tmp_path, ["a", "bc"]))


def test_a_refused_text_is_found_by_its_record(tmp_path: Path) -> None:
    embedder = Stub(2)
    embedder.error = HTTPError("Text 3 holds a NUL character.", 400)
    with pytest.raises(HTTPError, match="from the first of records 129 to 192"):
        run(write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy", embedder, concurrency=1)


def test_a_full_disk_is_an_error_and_what_is_saved_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    with pytest.raises(NetworkError):
        run(given, out, Stub(5))

    def full(*about: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("embedserve_client.files.sink._Appended.append", full)
        with pytest.raises(FileError, match="No space left"):
            run(given, out)
    run(given, out)
    assert np.array_equal(read(out), expected(given))


@pytest.mark.parametrize("target", ["out", "out.txt", "out.csv"])
def test_an_output_of_no_known_kind(tmp_path: Path, target: str) -> None:
    with pytest.raises(FileError, match="must end in"):
        run(write(tmp_path / "in.txt", ["a"]), tmp_path / target)
