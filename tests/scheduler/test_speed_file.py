"""Speeds over restarts."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config import EmbedderSettings
from serve_app.scheduler.model_speed import ComputedBatch, ModelSpeed
from serve_app.scheduler.speed_checkpoints import SpeedCheckpoints
from serve_app.scheduler.speed_file import SpeedFile
from tests.fakes import FakeEngine

INFO = FakeEngine.info
SETTINGS = EmbedderSettings()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def run_batches(speed: ModelSpeed) -> None:
    for tokens in (10, 100, 1000) * 5:
        speed.record(ComputedBatch(5, tokens, tokens, 0.001 + tokens * 1e-5))


def restarted() -> ModelSpeed:
    """Returns the speed that a new process knows."""
    speed = ModelSpeed(1)
    SpeedCheckpoints().add("model", speed, SpeedFile(INFO))
    return speed


async def run_process() -> float:
    """Returns the capacity that a process measures before it stops."""
    speed, checkpoints = ModelSpeed(1), SpeedCheckpoints()
    checkpoints.add("model", speed, SpeedFile(INFO))
    checkpoints.start()
    run_batches(speed)
    await checkpoints.stop()
    return speed.capacity_tokens_per_s(SETTINGS)


@pytest.mark.usefixtures("cache")
async def test_a_new_process_knows_the_speed() -> None:
    assert restarted().capacity_tokens_per_s(SETTINGS) == 0
    capacity = await run_process()
    assert capacity > 0
    assert restarted().capacity_tokens_per_s(SETTINGS) == pytest.approx(capacity)


async def test_it_is_written_while_batches_run(cache: Path) -> None:
    speed, checkpoints = ModelSpeed(1), SpeedCheckpoints(interval_s=0.01)
    checkpoints.add("model", speed, SpeedFile(INFO))
    checkpoints.start()
    await asyncio.sleep(0.05)
    assert files(cache) == []  # nothing is known
    run_batches(speed)
    async with asyncio.timeout(30):
        while not restarted().capacity_tokens_per_s(SETTINGS):
            await asyncio.sleep(0.01)
    (file,) = files(cache)
    written_ns = file.stat().st_mtime_ns
    await asyncio.sleep(0.05)
    assert file.stat().st_mtime_ns == written_ns  # nothing has changed
    await checkpoints.stop()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "other",
    [
        replace(INFO, space_id="another"),
        replace(INFO, engine="another"),
        replace(INFO, device="cuda"),
        replace(INFO, precision="bf16"),
        replace(INFO, threads=4),
    ],
)
def test_other_models_engines_and_machines_have_files_of_their_own(other: object) -> None:
    SpeedFile(INFO).write({"a": 1})
    assert SpeedFile(INFO).read() == {"a": 1}
    assert SpeedFile(other).read() is None  # type: ignore[arg-type]


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:40])


def of_another_cpu(file: Path) -> None:
    file.write_text(file.read_text().replace('"cpu": "', '"cpu": "another '))


def of_another_format(file: Path) -> None:
    file.write_text(file.read_text().replace('"texts"', '"words"'))


def of_another_type(file: Path) -> None:
    file.write_text("[1, 2]")


def not_text(file: Path) -> None:
    file.write_bytes(b"\xff\x00")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage", [torn, of_another_cpu, of_another_format, of_another_type, not_text, a_folder]
)
async def test_a_damaged_or_foreign_file_is_ignored(
    cache: Path, damage: Callable[[Path], None]
) -> None:
    capacity = await run_process()
    (file,) = files(cache)
    damage(file)
    assert restarted().capacity_tokens_per_s(SETTINGS) == 0
    assert await run_process() == pytest.approx(capacity)


async def test_a_folder_that_cannot_be_written_is_logged_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "embedserve").write_text("a file in the place of the folder")
    speed, checkpoints = ModelSpeed(1), SpeedCheckpoints(interval_s=0.01)
    with caplog.at_level(logging.WARNING):
        checkpoints.add("model", speed, SpeedFile(INFO))
        checkpoints.start()
        for _ in range(5):
            run_batches(speed)
            await asyncio.sleep(0.03)
        await checkpoints.stop()
    (record,) = caplog.records
    assert "can't be kept" in record.getMessage()


async def test_a_full_disk_leaves_the_previous_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = SpeedFile(INFO)
    file.write({"a": 1})

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        file.write({"a": 2})
    assert file.read() == {"a": 1}
    assert len(files(cache)) == 1  # nothing is left behind
    assert "No space left" in caplog.text
