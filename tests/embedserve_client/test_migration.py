"""`embedserve migrate`: each row once, whatever ends a run, and readers see one space."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from embedserve_client import FileError, NetworkError, SpaceMismatchError, VectorIndex
from embedserve_client.base import EmbedOptions
from embedserve_client.command.main import main
from embedserve_client.files.source import open_source
from embedserve_client.migration.agreement import Sample, agreement
from embedserve_client.migration.index_store import IndexStore
from embedserve_client.migration.migration import Migration, MigrationOptions, Report
from embedserve_client.migration.parquet_store import ParquetStore
from embedserve_client.migration.rate_limit import RateLimit
from embedserve_client.migration.store import Store
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo, Vectors
from tests.embedserve_client.scripted_server import SPACE, Handler, ScriptedServer, vectors

ROOT = Path(__file__).parents[2]
OLD, NEW = "0ld-fp32", "new-fp32"
TEXTS = [f"text {i}, 北京" for i in range(1000)]
OPTIONS: EmbedOptions = {"lane": "bulk", "input_type": "document"}


def new_vector(text: str, dim: int = 6) -> Any:
    seed = int.from_bytes(text.encode()[-24:], "little") + len(text)
    return np.random.default_rng(seed).normal(size=dim).astype(np.float32)


class Model:
    """A service with the new model. It fails after a number of batches."""

    def __init__(self, fails_after: int = 10**9, space: str = NEW) -> None:
        self.remaining, self.space = fails_after, space
        self.error: Exception = NetworkError("Can't connect.")
        self.texts: list[str] = []
        self.pins: list[str | None] = []
        self.in_flight = self.most_in_flight = 0

    def connect(self, space: str | None) -> "Model":
        self.pins.append(space)
        return self

    async def embed(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        assert (options["lane"], options["input_type"]) == ("bulk", "document")
        info = VectorInfo(Space.parse(self.space), "new-model", "service")
        if list(texts) == ["a text"]:
            return Vectors([new_vector("a text")], info)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(0.001 * (len(self.texts) % 3))  # so batches finish out of order
        self.in_flight -= 1
        self.remaining -= 1
        if self.remaining < 0:
            raise self.error
        self.texts += texts
        return Vectors([new_vector(text) for text in texts], info)

    async def close(self) -> None: ...


def old_vectors(texts: Sequence[str] = TEXTS) -> Any:
    return np.stack([new_vector(f"old {text}", 5) for text in texts])


def make_index(path: Path, metadata: Sequence[Any] = TEXTS) -> Path:
    index = VectorIndex()
    index.add(old_vectors([str(value) for value in metadata]), metadata, space=OLD)
    index.save(path)
    return path


def make_parquet(path: Path, texts: Sequence[str | None] = TEXTS, fixed: bool = True) -> Path:
    values = pa.array(old_vectors([str(text) for text in texts]).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, 5)
    table = pa.table(
        {
            "n": range(len(texts)),
            "embedding": column if fixed else column.cast(pa.list_(pa.float32())),
            "text": list(texts),
        }
    ).replace_schema_metadata({"embedserve.space": OLD, "mine": "kept"})
    pa.parquet.write_table(table, path, row_group_size=300)
    return path


def run(store: Store, model: Model, **options: Any) -> Report:
    settings: dict[str, Any] = {"batch_size": 64, "concurrency": 3, **options}
    try:
        migration = Migration(store, model.connect, MigrationOptions(OPTIONS, **settings))
        return asyncio.run(migration.run())
    finally:
        store.close()


def index_rows(path: Path) -> tuple[list[Any], Any, str]:
    """Returns metadata, vectors and the space of a saved index."""
    faiss = VectorIndex.load(path).faiss
    n = faiss.ntotal
    hits = VectorIndex.load(path).search(faiss.reconstruct_n(0, n), k=1, space=space_of(path))
    return [h[0].metadata for h in hits], faiss.reconstruct_n(0, n), space_of(path)


def space_of(path: Path) -> str:
    return str(json.loads((path / "manifest.json").read_text())["space"])


def parquet_rows(path: Path) -> tuple[list[Any], Any, str]:
    table = pyarrow.parquet.read_table(path)
    assert table["n"].to_pylist() == list(range(len(table)))
    assert table.schema.metadata[b"mine"] == b"kept"
    values = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    return table["text"].to_pylist(), values, table.schema.metadata[b"embedserve.space"].decode()


Kind = tuple[
    Callable[[Path], Path], Callable[[Path], Store], Callable[[Path], tuple[list[Any], Any, str]]
]
KINDS: dict[str, Kind] = {
    "index": (make_index, lambda path: IndexStore(path, "text"), index_rows),
    "parquet": (
        make_parquet,
        lambda path: ParquetStore(path, "text", "embedding"),
        parquet_rows,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def assert_migrated(kind: Kind, path: Path) -> None:
    texts, values, space = kind[2](path)
    assert texts == TEXTS
    assert space == NEW
    expected = np.stack([new_vector(text) for text in TEXTS])
    if kind is KINDS["index"]:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_every_row_gets_its_new_vector(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    model = Model()
    report = run(kind[1](path), model)
    assert_migrated(kind, path)
    assert sorted(model.texts) == sorted(TEXTS)
    assert model.most_in_flight <= 3
    assert (report.rows, report.embedded, report.old_space) == (1000, 1000, OLD)
    assert (report.space, report.model, report.switched) == (NEW, "new-model", True)
    assert model.pins == [None, NEW]


def test_interrupted_runs_resume_and_the_old_vectors_stay(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    embedded: list[str] = []
    for fails_after in (3, 0, 5):
        model = Model(fails_after)
        with pytest.raises(NetworkError):
            run(kind[1](path), model)
        embedded += model.texts
        texts, _, space = kind[2](path)
        assert (texts, space) == (TEXTS, OLD)
    model = Model()
    report = run(kind[1](path), model)
    assert model.pins == [NEW, NEW]
    assert 0 < report.resumed_at < 1000
    assert report.resumed_at + report.embedded == 1000
    assert len(embedded + model.texts) <= 1000 + 3 * 3 * 64  # the batches in flight
    assert_migrated(kind, path)


def test_service_with_another_space_ends_the_migration(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    model = Model(5)
    model.error = SpaceMismatchError("Another space.")
    with pytest.raises(SpaceMismatchError, match=r"no longer has the space new-fp32.*--restart"):
        run(kind[1](path), model)
    other = Model(space="other-fp32")
    with pytest.raises(SpaceMismatchError, match="--restart"):
        run(kind[1](path), other)
    run(kind[1](path), Model(space="new-bf16"))  # comparable
    assert_migrated(kind, path)


def test_index_in_the_space_of_the_service_stays(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    model = Model(space=OLD)
    report = run(kind[1](path), model)
    assert (report.already_there, report.switched, model.texts) == (True, False, [])
    assert run(kind[1](path), model, force=True).switched


def test_switch_can_wait_for_the_report(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    report = run(kind[1](path), Model(), min_agreement=0.5)
    assert report.agreement
    assert 0.0 <= report.agreement.kept < 0.5  # the two models have nothing in common
    assert (report.agreement.rows, report.agreement.queries) == (1000, 1000)
    assert not report.switched
    assert not run(kind[1](path), Model(), switch=False).switched
    assert kind[2](path)[2] == OLD
    model = Model()
    assert run(kind[1](path), model).switched
    assert model.texts == []
    assert_migrated(kind, path)


def test_index_that_changes_meanwhile_is_not_replaced(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    store = kind[1](path)
    if kind is KINDS["index"]:
        make_index(path, TEXTS[:7])
    else:
        make_parquet(path, TEXTS[:7])
    with pytest.raises(FileError, match=r"changed meanwhile\. Start over with --restart"):
        run(store, Model(), sample=0)
    assert len(kind[2](path)[0]) == 7
    with pytest.raises(FileError, match="--restart"):
        kind[1](path)


def test_two_migrations_of_one_index_exclude_each_other(kind: Kind, tmp_path: Path) -> None:
    path = kind[0](tmp_path / "my.parquet")
    store = kind[1](path)
    with pytest.raises(FileError, match="Another program migrates"):
        kind[1](path)
    run(store, Model())
    assert_migrated(kind, path)


def test_rows_without_a_text(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "my.parquet", ["a", None, "", "b"], fixed=False)

    def store() -> Store:
        return ParquetStore(path, "text", "embedding")

    with pytest.raises(FileError, match=r"Row 1 .*has no text.*--on-empty null"):
        run(store(), Model())
    report = run(store(), Model(), on_empty="null")
    assert (report.embedded, report.without_vector) == (2, 2)
    rows = pyarrow.parquet.read_table(path)["embedding"].to_pylist()
    assert [row is None for row in rows] == [False, True, True, False]
    np.testing.assert_allclose(rows[3], new_vector("b"), rtol=1e-6)


def test_where_the_texts_of_an_index_are(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    urls = make_index(tmp_path / "urls", [f"https://host/{i}" for i in range(1000)])
    with pytest.raises(FileError, match=r"look like addresses or identifiers.*--texts FILE"):
        IndexStore(urls, "text")
    objects = make_index(tmp_path / "objects", [{"body": text} for text in TEXTS])
    with pytest.raises(FileError, match=r"no text in field 'text'.*--column NAME"):
        IndexStore(objects, "text")
    for store in (
        IndexStore(urls, "text", open_source(str(texts), None, "text")),
        IndexStore(objects, "body"),
    ):
        model = Model()
        run(store, model)
        assert sorted(model.texts) == sorted(TEXTS)
    texts.write_text('"a"\n')
    source = open_source(str(texts), None, "text")
    with pytest.raises(FileError, match="only 1 texts for 1,000 rows"):
        run(IndexStore(urls, "text", source), Model(space="third-fp32"), force=True)
    with pytest.raises(FileError, match=r"no column 'body'.*only n, embedding, text.*--texts"):
        ParquetStore(make_parquet(tmp_path / "my.parquet"), "body", "embedding")


def test_output_keeps_the_old_index(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index")
    run(IndexStore(index, "text", output=tmp_path / "new"), Model())
    assert (space_of(index), space_of(tmp_path / "new")) == (OLD, NEW)
    assert index_rows(tmp_path / "new")[0] == TEXTS
    with pytest.raises(FileError, match="exists"):
        IndexStore(index, "text", output=tmp_path / "new")
    file = make_parquet(tmp_path / "my.parquet")
    run(ParquetStore(file, "text", "embedding", output=tmp_path / "new.parquet"), Model())
    assert (parquet_rows(file)[2], parquet_rows(tmp_path / "new.parquet")[2]) == (OLD, NEW)


def test_agreement_of_neighbours() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(500, 16)).astype(np.float32)
    texts = [str(i) for i in range(500)]
    same = agreement(Sample(texts, values, values * 3), 0)
    assert same
    assert (same.kept, same.kept_first, same.neighbours) == (1.0, 1.0, 10)
    assert same.mean_cosine == pytest.approx(1.0)
    other = agreement(Sample(texts, values, rng.normal(size=(500, 8)).astype(np.float32)), 0)
    assert other
    assert other.kept < 0.1
    assert other.mean_cosine is None
    noisy = values + rng.normal(scale=0.3, size=values.shape).astype(np.float32)
    near = agreement(Sample(texts, values, noisy), 0)
    assert near
    assert other.kept < near.kept < 1.0
    # Equal texts have equal vectors: which of them is the neighbour says nothing.
    doubled = agreement(Sample(texts * 2, np.tile(values, (2, 1)), np.tile(noisy, (2, 1))), 0)
    assert doubled == near
    assert agreement(Sample(["a", "a"], values[:2], values[:2]), 0) is None


def test_rate_limit_spreads_texts() -> None:
    now = 100.0
    limit = RateLimit(50, lambda: now)
    assert [limit.delay_s(100), limit.delay_s(100), limit.delay_s(10)] == [0, 2, 4]
    now = 200.0
    assert [limit.delay_s(100), limit.delay_s(1)] == [0, 2]
    assert RateLimit(None).delay_s(10**9) == 0


def test_killed_migrations_resume(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at any moment: the next run goes on, and each row is there once."""
    path = make_index(tmp_path / "index")
    journal = path.with_name("index.migration") / "vectors.npy.journal"

    def done() -> int:
        return int(json.loads(journal.read_text())["progress"]["records"])

    def is_beyond(rows: int) -> bool:
        return journal.exists() and done() > rows

    command = ["migrate", str(path), "--url", server.url, "--batch-size", "10", "--concurrency"]
    reached = 0
    for _ in range(2):
        ended = threading.Event()
        release = slow_replies(server, ended, partial(is_beyond, reached))
        with subprocess.Popen(
            [sys.executable, "-m", "embedserve_client.command.main", *command, "2", "--quiet"],
            cwd=ROOT,
        ) as process:
            release.wait(60)
            os.kill(process.pid, signal.SIGKILL)
            ended.set()
        assert space_of(path) == OLD
        assert reached < done() < 1000
        reached = done()
    server.script = []
    before = len(server.bodies)
    assert main([*command, "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["resumed_at"], report["embedded"]) == (reached, 1000 - reached)
    sent = [text for body in server.bodies[before + 1 :] for text in body["input"]]
    assert sorted(sent) == sorted(TEXTS[reached:])
    assert {headers["x-embedding-space"] for headers in server.headers[before:]} == {SPACE}
    assert {headers["x-priority"] for headers in server.headers} == {"bulk"}
    assert (space_of(path), VectorIndex.load(path).faiss.ntotal) == (SPACE, 1000)


def slow_replies(
    server: ScriptedServer, ended: threading.Event, is_saved: Callable[[], bool]
) -> threading.Event:
    """Replies slowly; once `is_saved`, sets the event and replies no more until `ended`."""
    saved = threading.Event()

    def reply(handler: Handler) -> None:
        time.sleep(0.1)  # a save is due after 2 s, and 100 batches take longer
        if is_saved():
            saved.set()
            ended.wait(60)
        vectors()(handler)

    server.script = [reply] * 200
    return saved


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "index")


def test_command_reports_and_rejects(
    server: ScriptedServer, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["migrate", str(index), "--url", server.url]
    assert main([*command, "--min-agreement", "0.9"]) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "1,000 queries among 1,000 sampled rows, seed 0" in printed
    assert "below 90.0%, so the old vectors stay in use" in printed
    assert main([*command, "--no-switch"]) == 0
    assert space_of(index) == OLD
    assert main(command) == 0
    assert "All 1,000 rows have new vectors." in capsys.readouterr().err
    assert main(command) == 0
    assert "already in space" in capsys.readouterr().err
    assert main([*command[:1], str(index.with_name("none")), *command[2:]]) == 1
    assert "There is no index" in capsys.readouterr().err
