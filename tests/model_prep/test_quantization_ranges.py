import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import MINILM
from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact import write_manifest
from serve_app.model_prep.artifact_cache import BuildStep
from serve_app.model_prep.calibration import calibrate
from serve_app.model_prep.calibration_corpus import calibration_texts
from serve_app.model_prep.quantization_ranges import (
    compute_ranges,
    get_or_build_quantization_ranges,
    hashing_quantization_ranges,
    read_quantization_ranges,
    write_quantization_ranges,
)
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines.reference import load_reference, reference_vectors

#: If it changes, bump `RANGES_FORMAT`: users store int8 vectors.
CORPUS_SHA256 = "4a047069f29cd136d6d3f0feeab32f8f551ca857451051da4f4155693c0b0e28"


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Float32:
    folder = tmp_path_factory.mktemp("ranges")
    calibrate(load_reference(), {}, folder)
    ranges = read_quantization_ranges(folder)
    assert ranges is not None
    return ranges


def test_the_corpus_is_the_same_in_every_version() -> None:
    texts = calibration_texts()
    assert len(texts) == len(set(texts)) == 501
    assert hashlib.sha256("\n\n".join(texts).encode()).hexdigest() == CORPUS_SHA256


def test_the_corpus_has_texts_of_all_lengths_and_many_scripts() -> None:
    texts = calibration_texts()
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 1
    assert max(lengths) > 70
    scripts = {"Cyrillic": "[а-я]", "Han": "[一-鿿]", "Kana": "[ぁ-ヿ]", "Arabic": "[ا-ي]"}
    scripts |= {"Devanagari": "[अ-ह]", "Hangul": "[가-힣]", "accents": "[éäößñç]", "emoji": "😂"}
    for script, letters in scripts.items():
        assert sum(bool(re.search(letters, text)) for text in texts) >= 4, script
    assert not any("{" in text for text in texts)  # every placeholder is filled in


def test_ranges_hold_nearly_all_values_of_other_texts(calibrated: Float32) -> None:
    vectors = reference_vectors(160)  # of much stranger texts than the corpus
    outside = (vectors < calibrated[0]) | (vectors > calibrated[1])
    assert calibrated.shape == (2, 384)
    assert outside.mean() < 0.001
    assert (calibrated[1] - calibrated[0]).max() < 1  # not needlessly wide


def test_rounding_errors_do_not_change_ranges() -> None:
    """`test_openvino_engine` computes those of the corpus with another library."""
    vectors = reference_vectors(160)
    noise = np.random.default_rng(1).normal(0, 1e-6, vectors.shape).astype(np.float32)
    assert np.array_equal(compute_ranges(vectors + noise), compute_ranges(vectors))


def test_ranges_have_a_margin_and_lie_on_a_coarse_grid() -> None:
    vectors = np.array([[-0.3, 0.1, 0], [0.5, 0.1, 0]], dtype=np.float32)
    low, high = compute_ranges(vectors)
    assert low.tolist() == [-0.4375, 0.0625, -0.0625]  # -0.3 - 0.8 / 8, rounded down to a 16th
    assert high.tolist() == [0.625, 0.1875, 0.0625]  # constant components have a range, too
    assert np.array_equal(compute_ranges(8 * vectors), 8 * compute_ranges(vectors))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_vectors_that_are_not_finite_have_no_ranges(value: float) -> None:
    with pytest.raises(ValueError, match="no finite"):
        compute_ranges(np.full((2, 3), value, dtype=np.float32))


def test_hashing_has_the_ranges_of_unit_vectors() -> None:
    assert hashing_quantization_ranges(3).tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_prompts_alternate(tmp_path: Path) -> None:
    encoded: list[str] = []

    class Model:
        def encode(self, texts: list[str], prompt: str, **_: Any) -> Float32:
            assert prompt == ""  # otherwise the model's default prompt would be added
            encoded.extend(texts)
            return np.ones((len(texts), 2), dtype=np.float32)

    calibrate(Model(), {"query": "q: ", "document": ""}, tmp_path)  # type: ignore[arg-type]
    texts = calibration_texts()
    assert set(encoded) == {f"q: {text}" for text in texts[::2]} | set(texts[1::2])


def test_the_reason_for_missing_ranges_is_stored_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def encode(self, *_: Any, **__: Any) -> Float32:
            raise RuntimeError("no such kernel")

    calibrate(Broken(), {}, tmp_path)  # type: ignore[arg-type]
    assert read_quantization_ranges(tmp_path) is None
    calibrate(Broken(), {}, tmp_path, timeout_s=-1)  # type: ignore[arg-type]
    assert read_quantization_ranges(tmp_path) is None
    assert "RuntimeError: no such kernel" in caplog.messages[0]
    assert "TimeoutError: it takes longer than" in caplog.messages[1]
    assert str(tmp_path) in caplog.messages[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "embedserve"


def test_precisions_of_one_family_share_their_ranges(cache: Path) -> None:
    folders: list[Path] = []

    def build(step: BuildStep, folder: Path) -> None:
        assert step.arguments == (MINILM.model_dump_json(),)
        folders.append(folder)
        write_quantization_ranges(folder, hashing_quantization_ranges(384))
        write_manifest(folder)

    for precision in ("fp32", "bf16", "fp16"):
        spec = resolve(MINILM, precision)
        ranges = get_or_build_quantization_ranges(MINILM, spec, build=build)
        assert np.array_equal(ranges, hashing_quantization_ranges(384))  # type: ignore[arg-type]
    assert len(folders) == 1
    (folder,) = (path for path in (cache / "ranges").iterdir() if path.is_dir())
    assert folder.name.startswith(resolve(MINILM).space_id.removesuffix("-fp32"))


@pytest.mark.usefixtures("cache")
def test_a_failed_calibration_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def build(step: BuildStep, folder: Path) -> None:
        raise ConfigurationError(f"Building {step.description} failed.")

    assert get_or_build_quantization_ranges(MINILM, resolve(MINILM), build=build) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No int8 or uint8 vectors: Building the quantization ranges of" in caplog.messages[0]
