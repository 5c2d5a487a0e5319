"""Prepared models on disk: found again, and refused when their vectors are wrong."""

import shutil
from pathlib import Path

import pytest

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep import artifact_cache
from serve_app.model_prep.artifact_cache import BuildStep, write_manifest
from serve_app.model_prep.prepared_model import prepared, write_parity
from serve_app.types import Parity
from tests.fakes import SPEC

CONFIG = ModelConfig(name="org/fake", source="path:/nowhere")
COSINE = [1.0]  # what the stand-in's gate measures


@pytest.fixture
def makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for the conversion; where it was asked to put the model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def make(folder: Path, recipe: BuildStep) -> None:
        made.append(folder)
        assert recipe.arguments == (CONFIG.model_dump_json(), "fp32")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_parity(folder, Parity("fp32", 50, COSINE[0]))
        write_manifest(folder)

    monkeypatch.setattr(artifact_cache, "_make", make)
    COSINE[0] = 1.0
    return made


def test_it_is_kept_by_space_with_what_the_gate_measured(makes: list[Path]) -> None:
    first = prepared(CONFIG, SPEC, "fp32")
    assert first == prepared(CONFIG, SPEC, "fp32")
    assert len(makes) == 1
    assert first.folder.name.startswith(SPEC.space_id)
    assert first.parity == Parity("fp32", 50, 1.0)


@pytest.mark.parametrize("cosine", [0.9, float("nan")])
def test_wrong_vectors_are_refused_every_time(makes: list[Path], cosine: float) -> None:
    COSINE[0] = cosine
    for _ in range(2):
        with pytest.raises(ParityFailed, match=f"cosine {cosine:.6f} .* `engine: torch`"):
            prepared(CONFIG, SPEC, "fp32")
    assert len(makes) == 1


def test_a_model_that_cannot_be_converted_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ConfigurationError, match="Making the prepared model of org/fake failed"
    ) as failed:
        prepared(CONFIG, SPEC, "fp32")
    assert "/nowhere" not in str(failed.value)
    assert not list((tmp_path / "embedserve" / "prepared").glob("making-*"))
