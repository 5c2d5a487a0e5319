"""Ranges: the same wherever they are made, and never in the way of the service."""

import hashlib
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from serve_app.config import MINILM
from serve_app.errors import ConfigurationError
from serve_app.model_prep import artifact_cache
from serve_app.model_prep import calibration as calibrate_module
from serve_app.model_prep.artifact_cache import BuildStep, write_manifest
from serve_app.model_prep.calibration import calibrate
from serve_app.model_prep.calibration_corpus import corpus
from serve_app.model_prep.quantization_ranges import (
    get_or_build_quantization_ranges,
    hashing_quantization_ranges,
    ranges_around,
    read_quantization_ranges,
    write_quantization_ranges,
)
from serve_app.models import resolve
from serve_app.types import Float32
from tests.engines import reference

#: Of all texts. If it changes, `RANGES_FORMAT` must change with it: codes lie in indexes.
CORPUS_SHA256 = "4a047069f29cd136d6d3f0feeab32f8f551ca857451051da4f4155693c0b0e28"


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return reference.model()


@pytest.fixture(scope="module")
def calibrated(model: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Float32:
    place = tmp_path_factory.mktemp("ranges")
    calibrate(model, {}, place)
    found = read_quantization_ranges(place)
    assert found is not None
    return found


def test_the_corpus_is_the_same_for_ever() -> None:
    texts = corpus()
    assert len(texts) == len(set(texts)) == 501
    assert hashlib.sha256("\n\n".join(texts).encode()).hexdigest() == CORPUS_SHA256


def test_the_corpus_has_texts_of_all_lengths_and_many_scripts() -> None:
    texts = corpus()
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) == 1
    assert max(lengths) > 70
    scripts = {"Cyrillic": "[а-я]", "Han": "[一-鿿]", "Kana": "[ぁ-ヿ]", "Arabic": "[ا-ي]"}
    scripts |= {"Devanagari": "[अ-ह]", "Hangul": "[가-힣]", "accents": "[éäößñç]", "emoji": "😂"}
    for script, letters in scripts.items():
        assert sum(bool(re.search(letters, text)) for text in texts) >= 4, script
    assert not any("{" in text for text in texts)  # nothing was left to be filled in


def test_a_models_ranges_hold_nearly_all_that_it_gives(calibrated: Float32) -> None:
    others = reference.vectors(160)  # much odder than the corpus
    outside = (others < calibrated[0]) | (others > calibrated[1])
    assert calibrated.shape == (2, 384)
    assert outside.mean() < 0.001
    assert (calibrated[1] - calibrated[0]).max() < 1  # and are no wider than they need to be


def test_they_are_the_same_where_vectors_differ_as_between_machines(
    model: SentenceTransformer, calibrated: Float32
) -> None:
    vectors: Float32 = model.encode(corpus(), batch_size=5)  # other sums than one by 16 takes
    assert np.array_equal(ranges_around(vectors), calibrated)
    noise = np.random.default_rng(1).normal(0, 1e-6, vectors.shape).astype(np.float32)
    assert np.array_equal(ranges_around(vectors + noise), calibrated)


def test_ranges_are_wider_than_what_was_seen_and_on_a_coarse_grid() -> None:
    seen = np.array([[-0.3, 0.1, 0], [0.5, 0.1, 0]], dtype=np.float32)
    low, high = ranges_around(seen)
    assert low.tolist() == [-0.4375, 0.0625, -0.0625]  # -0.3 - 0.8 / 8, down to a 16th
    assert high.tolist() == [0.625, 0.1875, 0.0625]  # and none is empty
    assert np.array_equal(ranges_around(8 * seen), 8 * ranges_around(seen))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_what_is_no_number_gives_no_ranges(value: float) -> None:
    with pytest.raises(ValueError, match="no finite"):
        ranges_around(np.full((2, 3), value, dtype=np.float32))


def test_hashing_has_the_ranges_of_unit_vectors() -> None:
    assert hashing_quantization_ranges(3).tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_prompts_take_turns(tmp_path: Path) -> None:
    read: list[str] = []

    class Model:
        def encode(self, texts: list[str], prompt: str, **_: Any) -> Float32:
            assert prompt == ""  # or a model's default prompt would stand before ours
            read.extend(texts)
            return np.ones((len(texts), 2), dtype=np.float32)

    calibrate(Model(), {"query": "q: ", "document": ""}, tmp_path)  # type: ignore[arg-type]
    texts = corpus()
    assert set(read) == {f"q: {text}" for text in texts[::2]} | set(texts[1::2])


def test_a_model_that_fails_or_is_too_slow_has_no_ranges_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def encode(self, *_: Any, **__: Any) -> Float32:
            raise RuntimeError("no such kernel")

    calibrate(Broken(), {}, tmp_path)  # type: ignore[arg-type]
    assert read_quantization_ranges(tmp_path) is None
    monkeypatch.setattr(calibrate_module, "_TIME_S", -1.0)
    calibrate(Broken(), {}, tmp_path)  # type: ignore[arg-type]
    assert read_quantization_ranges(tmp_path) is None
    assert "RuntimeError: no such kernel" in caplog.messages[0]
    assert "TimeoutError: it takes longer than" in caplog.messages[1]
    assert str(tmp_path) in caplog.messages[1]


@pytest.fixture
def makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands in for calibrating; where it was asked to put the ranges."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[Path] = []

    def make(place: Path, recipe: BuildStep) -> None:
        made.append(place)
        assert recipe.arguments == (MINILM.model_dump_json(),)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        write_quantization_ranges(place, hashing_quantization_ranges(384))
        write_manifest(place)

    monkeypatch.setattr(artifact_cache, "_make", make)
    return made


def test_precisions_of_one_family_have_the_same_ranges(makes: list[Path]) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        found = get_or_build_quantization_ranges(MINILM, resolve(MINILM, precision))
        assert np.array_equal(found, hashing_quantization_ranges(384))  # type: ignore[arg-type]
    assert len(makes) == 1
    assert makes[0].name.startswith(resolve(MINILM).space_id.removesuffix("-fp32"))


def test_without_ranges_the_service_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(place: Path, recipe: BuildStep) -> None:
        raise ConfigurationError(f"Making {recipe.what} failed.")

    monkeypatch.setattr(artifact_cache, "_make", make)
    assert get_or_build_quantization_ranges(MINILM, resolve(MINILM)) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No int8 or uint8 vectors: Making the ranges of" in caplog.messages[0]
