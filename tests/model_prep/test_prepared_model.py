from pathlib import Path

import pytest

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError, ParityFailed
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.artifact_cache import BuildStep
from serve_app.model_prep.prepared_model import get_prepared_model, write_parity
from serve_app.types import Parity
from tests.fakes import SPEC

CONFIG = ModelConfig(name="org/fake", source="path:/nowhere")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "embedserve"


class Builder:
    """Stands in for the conversion: writes a parity only, and counts."""

    def __init__(self, cosine_min: float | None, score_error_max: float | None = None) -> None:
        self.parity = Parity("fp32", 50, cosine_min, score_error_max)
        self.builds = 0

    def __call__(self, step: BuildStep, folder: Path) -> None:
        assert step.arguments == (CONFIG.model_dump_json(), "fp32")
        self.builds += 1
        write_parity(folder, self.parity)
        write_manifest(folder)


def test_a_model_is_prepared_once_per_space_with_its_parity() -> None:
    build = Builder(1.0)
    first = get_prepared_model(CONFIG, SPEC, "fp32", build=build)
    assert first == get_prepared_model(CONFIG, SPEC, "fp32", build=build)
    assert build.builds == 1
    assert first.folder.name.startswith(SPEC.space_id)
    assert first.parity == Parity("fp32", 50, 1.0)


@pytest.mark.parametrize("cosine", [0.9, float("nan")])
def test_a_model_without_parity_is_rejected_every_time(cosine: float) -> None:
    build = Builder(cosine)
    for _ in range(2):
        with pytest.raises(ParityFailed, match=f"cosine {cosine:.6f} .* `engine: torch`"):
            get_prepared_model(CONFIG, SPEC, "fp32", build=build)
    assert build.builds == 1


def test_the_scores_of_a_model_have_a_gate_of_their_own() -> None:
    build = Builder(None, 1e-5)
    assert get_prepared_model(CONFIG, SPEC, "fp32", build=build).parity == build.parity


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_model_whose_scores_have_no_parity_is_rejected(error: float) -> None:
    with pytest.raises(ParityFailed, match=f"scores are up to {error:.6f} away .* `engine: torch`"):
        get_prepared_model(CONFIG, SPEC, "fp32", build=Builder(None, error))


def test_a_model_that_cannot_be_converted_says_why(cache: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="Building the prepared model of org/fake failed"
    ) as raised:
        get_prepared_model(CONFIG, SPEC, "fp32")
    assert "/nowhere" not in str(raised.value)
    assert [path.suffix for path in (cache / "prepared").iterdir()] == [".lock"]


def test_a_precision_that_the_cpu_would_emulate_is_not_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also by `python -m serve_app.model_prep.openvino_export`, before it reads the model."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    with pytest.raises(ConfigurationError, match=r"bf16 natively.*`precision: fp32`"):
        get_prepared_model(CONFIG, SPEC, "bf16")
