"""Prepared models on disk: whole or made anew, once, and refused when their vectors are wrong."""

import shutil
import threading
from pathlib import Path

import orjson
import pytest

from serve_app.config import ModelConfig
from serve_app.engine import prepared as prepared_module
from serve_app.engine.prepared import describe, prepared
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.types import Parity
from tests.fakes import SPEC

CONFIG = ModelConfig(name="org/fake", source="path:/nowhere")
COSINE = [1.0]  # what the stand-in's gate measures


@pytest.fixture
def makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the conversion; where it was asked to put the model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def make(config: ModelConfig, precision: str, folder: Path) -> None:
        made.append(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"weights")
        describe(folder, Parity(precision, 50, COSINE[0]))

    monkeypatch.setattr(prepared_module, "_make", make)
    COSINE[0] = 1.0
    return made


def test_it_is_made_once_and_then_found(makes: list[Path]) -> None:
    first = prepared(CONFIG, SPEC, "fp32")
    assert first == prepared(CONFIG, SPEC, "fp32")
    assert len(makes) == 1
    assert first.folder.name.startswith(SPEC.space_id)


@pytest.mark.parametrize("broken", ["model.bin", "about.json"])
def test_what_is_not_whole_is_made_anew(makes: list[Path], broken: str) -> None:
    place = prepared(CONFIG, SPEC, "fp32").folder
    (place / broken).write_bytes(b"{}")
    assert prepared(CONFIG, SPEC, "fp32").folder == place
    assert len(makes) == 2


def test_several_that_ask_at_once_make_it_once(makes: list[Path]) -> None:
    asking = [threading.Thread(target=prepared, args=(CONFIG, SPEC, "fp32")) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(makes) == 1


@pytest.mark.parametrize("cosine", [0.9, float("nan")])
def test_wrong_vectors_are_refused_every_time(makes: list[Path], cosine: float) -> None:
    COSINE[0] = cosine
    for _ in range(2):
        with pytest.raises(ParityFailed, match="engine: torch"):
            prepared(CONFIG, SPEC, "fp32")
    assert len(makes) == 1
    assert orjson.loads((makes[0] / "about.json").read_bytes())["parity"]["texts"] == 50


def test_a_cache_folder_that_cannot_be_written_is_told_without_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="Not a directory") as failed:
        prepared(CONFIG, SPEC, "fp32")
    assert str(tmp_path) not in str(failed.value)


def test_a_model_that_cannot_be_converted_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match="Preparing org/fake for OpenVINO failed"
    ) as failed:
        prepared(CONFIG, SPEC, "fp32")
    assert "/nowhere" not in str(failed.value)
    assert not list((tmp_path / "embedserve" / "prepared").glob("making-*"))
