"""File jobs: every combination of formats, interrupted and resumed."""

import asyncio
import csv
import json
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest

from embedserve_client.base import EmbedOptions
from embedserve_client.errors import FileError, HTTPError, NetworkError, SpaceMismatchError
from embedserve_client.files.job import FileJob, JobRun
from embedserve_client.files.source import open_source
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo, Vectors
from tests.embedserve_client.scripted_server import SPACE, vector

N = 1000
#: With characters that need escaping in some format.
TEXTS = [f'{i} "quoted", 北京 and\ttab' for i in range(N)]
TARGETS = ["npy", "jsonl", "parquet"]


class StubEmbedder:
    """An embedder that fails after a number of batches."""

    def __init__(self, fails_after: int = 10**9, space: str = SPACE) -> None:
        self.texts: list[str] = []
        self.remaining = fails_after
        self.space = Space.parse(space)
        self.error: Exception = NetworkError("Can't connect.")

    async def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        await asyncio.sleep(0.001 * (len(self.texts) % 3))  # so batches finish out of order
        self.remaining -= 1
        if self.remaining < 0:
            raise self.error
        self.texts += texts
        info = VectorInfo(self.space, "m", "service", 0, (0,))
        return Vectors([vector(text) for text in texts], info)

    async def close(self) -> None: ...


def write(file: Path, texts: Sequence[str]) -> Path:
    """Writes texts and their numbers in the format of the suffix."""
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
    source: Path,
    target: Path,
    embedder: StubEmbedder | None = None,
    column: str = "text",
    **options: Any,
) -> dict[str, Any]:
    job = FileJob(
        open_source(str(source), None, column),
        str(target),
        {"lane": "bulk"},
        **{"batch_size": 64, "concurrency": 3, **options},
    )
    job_run = JobRun(job, embedder or StubEmbedder(), lambda progress: None)
    asyncio.run(job_run.run())
    return job_run.summary(1.0)


def read(target: Path) -> Any:
    """Reads the vectors of an output file."""
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
    suffix = "\nsecond line" if source.suffix == ".csv" else ""
    return np.array([vector(text + suffix) for text in texts], dtype=np.float32)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["txt", "jsonl", "csv", "parquet"])
def test_every_input_and_output_format(tmp_path: Path, source: str, target: str) -> None:
    source_file = write(tmp_path / f"in.{source}", TEXTS)
    out = tmp_path / f"out.{target}"
    summary = run(source_file, out)
    result = read(out)
    assert result.dtype == np.float32
    assert np.array_equal(result, expected(source_file))
    assert (summary["rows"], summary["space"], summary["model"]) == (N, SPACE, "m")
    assert summary["truncated"] == -(-N // 64)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source_file.name, out.name])


def test_other_fields_are_copied(tmp_path: Path) -> None:
    source_file = write(tmp_path / "in.jsonl", TEXTS)
    run(source_file, tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [(row["n"], row["text"]) for row in rows] == list(enumerate(TEXTS))
    run(write(tmp_path / "in.parquet", TEXTS), tmp_path / "out.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["n"].to_pylist() == list(range(N))
    assert table["text"].to_pylist() == TEXTS
    assert table.schema.metadata[b"embedserve.space"] == SPACE.encode()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["txt", "jsonl", "csv", "parquet"])
def test_interrupted_runs_resume(tmp_path: Path, source: str, target: str) -> None:
    source_file = write(tmp_path / f"in.{source}", TEXTS)
    out = tmp_path / f"out.{target}"
    embedded: list[str] = []
    for fails_after in (3, 0, 5, 10**9):
        embedder = StubEmbedder(fails_after)
        try:
            run(source_file, out, embedder)
        except NetworkError:
            assert not out.exists()
        embedded += embedder.texts
    assert np.array_equal(read(out), expected(source_file))
    # Written batches aren't embedded again. Each of 3 failures repeats the 3 batches in flight.
    assert len(embedded) <= N + 3 * 3 * 64
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source_file.name, out.name])


@pytest.mark.parametrize("target", TARGETS)
def test_output_after_the_last_save_is_discarded(tmp_path: Path, target: str) -> None:
    """After a kill, the partial output may be longer than the journal says."""
    source_file, out = write(tmp_path / "in.txt", TEXTS), tmp_path / f"out.{target}"
    with pytest.raises(NetworkError):
        run(source_file, out, StubEmbedder(5))
    partial = tmp_path / f"out.{target}.partial"
    if partial.is_dir():
        (partial / "000007.parquet").write_bytes(b"torn")
    else:
        with partial.open("ab") as file:
            file.write(b"torn in the middle" * 100_000)  # longer than the remaining output
    run(source_file, out)
    assert np.array_equal(read(out), expected(source_file))
    assert b"torn" not in out.read_bytes()


def test_changed_input_does_not_resume(tmp_path: Path) -> None:
    source_file, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    with pytest.raises(NetworkError):
        run(source_file, out, StubEmbedder(3))
    write(source_file, TEXTS[:500])
    with pytest.raises(FileError, match="belongs to another job"):
        run(source_file, out)
    run(source_file, out, restart=True)
    assert len(read(out)) == 500


def test_resumed_run_must_have_a_comparable_space(tmp_path: Path) -> None:
    source_file, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    with pytest.raises(NetworkError):
        run(source_file, out, StubEmbedder(3))
    with pytest.raises(SpaceMismatchError, match="--restart"):
        run(source_file, out, StubEmbedder(space="f" * 16 + "-fp32"))
    run(source_file, out, StubEmbedder(space=SPACE.replace("fp32", "bf16")))


def test_existing_output_is_kept_without_overwrite(tmp_path: Path) -> None:
    source_file, out = write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy"
    out.write_text("existing")
    with pytest.raises(FileError, match=r"exists\. Use --overwrite"):
        run(source_file, out)
    assert out.read_text() == "existing"
    run(source_file, out, overwrite=True)
    assert len(read(out)) == N


def test_concurrent_runs_of_one_output_are_rejected(tmp_path: Path) -> None:
    source_file = write(tmp_path / "in.txt", TEXTS)
    job = FileJob(open_source(str(source_file), None, "text"), str(tmp_path / "out.npy"), {})
    job_run = JobRun(job, StubEmbedder(), lambda progress: None)
    with pytest.raises(FileError, match="Another program is writing"):
        JobRun(job, StubEmbedder(), lambda progress: None)
    asyncio.run(job_run.run())


@pytest.mark.parametrize("target", TARGETS)
def test_records_without_text_fail_or_are_skipped(tmp_path: Path, target: str) -> None:
    source_file, out = write(tmp_path / "in.txt", ["a", "", "b", ""]), tmp_path / f"out.{target}"
    with pytest.raises(FileError, match="record 2, is empty"):
        run(source_file, out)
    assert run(source_file, out, on_empty="skip")["skipped"] == 2
    assert np.array_equal(read(out), expected(source_file, ["a", "b"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", b"", "holds no text"),
        ("in.txt", b"ok\n\xff\n", "isn't UTF-8 near byte 3"),
        ("in.jsonl", b'"a"\n{', "line 2, isn't JSON"),
        ("in.jsonl", b'{"body": "a"}', "no text in field 'text'; its fields are: body"),
        ("in.jsonl", b"3", "no text in field 'text'"),
        ("in.csv", b"a,b\n1,2\n", "no column 'text', only a, b"),
        ("in.csv", b"", "no column 'text', only none"),
        ("in.csv", b"text,b\nx\n", "record 1, has 1 values for 2 columns"),
        ("in.parquet", b"nonsense", "Can't read"),
    ],
)
def test_malformed_input_is_a_file_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=message):
        run(tmp_path / name, tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nbc\n", "utf-8-sig")
    run(tmp_path / "in.txt", tmp_path / "out.npy")
    assert np.array_equal(read(tmp_path / "out.npy"), expected(tmp_path, ["a", "bc"]))


def test_json_lines_may_be_strings(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n\n"bc"\n')
    run(tmp_path / "in.jsonl", tmp_path / "out.npy")
    assert np.array_equal(read(tmp_path / "out.npy"), expected(tmp_path, ["a", "bc"]))


def test_http_error_names_the_records_of_its_batch(tmp_path: Path) -> None:
    embedder = StubEmbedder(2)
    embedder.error = HTTPError("Text 3 holds a NUL character.", 400)
    with pytest.raises(HTTPError, match="relative to the batch of records 129-192"):
        run(write(tmp_path / "in.txt", TEXTS), tmp_path / "out.npy", embedder, concurrency=1)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Makes writes beyond `size` bytes fail, like those to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("target", TARGETS)
def test_full_disk_is_a_file_error_and_saved_output_stays(tmp_path: Path, target: str) -> None:
    source_file, out = write(tmp_path / "in.txt", TEXTS), tmp_path / f"out.{target}"
    with pytest.raises(NetworkError):
        run(source_file, out, StubEmbedder(5))
    with file_size_limit(6000), pytest.raises(FileError, match="Can't write"):
        run(source_file, out)
    assert not out.exists()
    assert run(source_file, out)["resumed_at"] > 0
    assert np.array_equal(read(out), expected(source_file))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([source_file.name, out.name])


@pytest.mark.parametrize("target", ["out", "out.txt", "out.csv"])
def test_unknown_output_format(tmp_path: Path, target: str) -> None:
    with pytest.raises(FileError, match="must end in"):
        run(write(tmp_path / "in.txt", ["a"]), tmp_path / target)
