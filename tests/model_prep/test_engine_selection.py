"""What is chosen where, with stand-ins for the CPU and for the preparing of a model."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import AppConfig, ModelConfig
from serve_app.errors import ConfigurationError, ModelSourceError, ParityFailed, SpaceMismatch
from serve_app.model_prep import engine_selection as choice_module
from serve_app.model_prep.engine_selection import load_engine, select_engine
from serve_app.model_prep.prepared_model import PreparedModel
from serve_app.models import ModelSpec
from serve_app.types import Float32, Parity

Cpu = Callable[[str], None]
HASHING = {"name": "words", "source": "hashing:64"}


@pytest.fixture(autouse=True)
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cpu:
    """Sets what the CPU has; bf16 unless a test says otherwise."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(choice_module, "_CPUINFO", file)

    def has(flags: str) -> None:
        file.write_text(f"model name\t: bf16_avx\nflags\t\t: fpu {flags} sse\n", "utf-8")

    has("avx512_bf16")
    return has


@pytest.fixture(autouse=True)
def failures(monkeypatch: pytest.MonkeyPatch) -> dict[str, ConfigurationError]:
    """What preparing fails with, by precision; otherwise it succeeds at once."""
    failing: dict[str, ConfigurationError] = {}

    def prepared(config: ModelConfig, spec: ModelSpec, precision: str) -> PreparedModel:
        if precision in failing:
            raise failing[precision]
        return PreparedModel(Path("prepared"), Parity(precision, 50, 0.99995))

    monkeypatch.setattr(choice_module, "prepared", prepared)
    return failing


@pytest.fixture(autouse=True)
def ranges(monkeypatch: pytest.MonkeyPatch) -> dict[str, Float32 | None]:
    """A model's ranges, by where they are found: in what was `prepared`, or on their own."""
    found: dict[str, Float32 | None] = {
        "prepared": np.array([[-2], [2]], dtype=np.float32),
        "alone": np.array([[-3], [3]], dtype=np.float32),
    }
    monkeypatch.setattr(
        choice_module, "read_quantization_ranges", lambda folder: found[folder.name]
    )
    monkeypatch.setattr(
        choice_module, "get_or_build_quantization_ranges", lambda config, spec: found["alone"]
    )
    return found


def chosen(**settings: Any) -> tuple[str, str]:
    config = select_engine(AppConfig(**settings)).config
    return config.engine, config.precision


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("openvino", "bf16")),
        ({"precision": "fp32"}, ("openvino", "fp32")),
        ({"precision": "fp16"}, ("torch", "fp16")),
        ({"engine": "torch"}, ("torch", "fp32")),
        ({"engine": "torch", "precision": "bf16"}, ("torch", "bf16")),
        ({"engine": "openvino"}, ("openvino", "bf16")),
        ({"engine": "openvino", "precision": "fp32"}, ("openvino", "fp32")),
        ({"device": "cuda"}, ("torch", "fp16")),
        ({"device": "cuda", "precision": "fp32"}, ("torch", "fp32")),
        ({"device": "cuda", "precision": "bf16"}, ("torch", "bf16")),
        ({"model": HASHING}, ("hashing", "fp32")),
        ({"model": HASHING, "engine": "hashing"}, ("hashing", "fp32")),
    ],
    ids=str,
)
def test_the_best_that_the_configuration_allows_is_taken(
    settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    choice = select_engine(AppConfig.model_validate(settings))
    assert (choice.config.engine, choice.config.precision) == expected
    assert choice.spec.space_id.endswith(f"-{expected[1]}")
    assert choice.refused == ()
    assert (choice.parity is not None) == (expected[0] == "openvino")
    assert pickle.loads(pickle.dumps(choice)) == choice
    assert select_engine(choice.config) == choice  # what is settled stays so


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[-2], [2]]),
        ({"precision": "fp32"}, [[-2], [2]]),
        ({"engine": "torch"}, [[-3], [3]]),
        ({"device": "cuda"}, [[-3], [3]]),
        ({"model": HASHING | {"source": "hashing:8"}}, [[-1] * 8, [1] * 8]),
    ],
    ids=str,
)
def test_ranges_are_decided_with_the_engine_and_go_to_every_replica(
    settings: dict[str, Any], expected: list[list[float]]
) -> None:
    choice = select_engine(AppConfig.model_validate(settings))
    there = pickle.loads(pickle.dumps(choice)).spec.quantization_ranges
    assert there.tolist() == expected
    assert there.dtype == np.float32


def test_a_model_without_ranges_is_served_all_the_same(
    ranges: dict[str, Float32 | None],
) -> None:
    ranges["prepared"] = None
    choice = select_engine(AppConfig())
    assert (choice.config.engine, choice.spec.quantization_ranges, choice.refused) == (
        "openvino",
        None,
        (),
    )


@pytest.mark.parametrize(("flags", "precision"), [("amx_bf16", "bf16"), ("avx512f", "fp32")])
def test_bf16_is_for_cpus_that_have_it(cpu: Cpu, flags: str, precision: str) -> None:
    cpu(flags)
    assert chosen() == ("openvino", precision)


def test_a_system_that_does_not_tell_of_its_cpu_gets_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice_module, "_CPUINFO", tmp_path / "none")
    assert chosen() == ("openvino", "fp32")


def test_what_is_refused_is_told_and_the_next_best_is_taken(
    failures: dict[str, ConfigurationError],
) -> None:
    failures["bf16"] = ParityFailed("too far")
    choice = select_engine(AppConfig())
    assert (choice.config.engine, choice.config.precision) == ("openvino", "fp32")
    assert choice.refused == ("openvino at bf16: too far",)
    failures["fp32"] = ConfigurationError("can't be made")
    choice = select_engine(AppConfig())
    assert (choice.config.engine, choice.config.precision) == ("torch", "fp32")
    assert [refusal.split(":")[0] for refusal in choice.refused] == [
        "openvino at bf16",
        "openvino at fp32",
    ]


def test_what_is_named_is_refused_rather_than_replaced(
    cpu: Cpu, failures: dict[str, ConfigurationError]
) -> None:
    failures["fp32"] = ParityFailed("too far")
    with pytest.raises(ParityFailed, match="too far"):
        select_engine(AppConfig(engine="openvino", precision="fp32"))
    cpu("avx512f")
    for engine in ("auto", "openvino"):
        with pytest.raises(ConfigurationError, match="AVX512-BF16 or AMX only"):
            select_engine(AppConfig.model_validate({"engine": engine, "precision": "bf16"}))
    with pytest.raises(ConfigurationError, match=r"No engine .* neither.* too far"):
        select_engine(AppConfig(engine="openvino"))


def test_a_model_that_is_not_there_is_no_reason_for_another_engine() -> None:
    with pytest.raises(ModelSourceError, match=r"no `modules.json`"):
        select_engine(AppConfig(model=ModelConfig(name="m", source="path:/nowhere")))


def test_a_replica_on_a_cpu_without_bf16_does_not_start(cpu: Cpu) -> None:
    choice = select_engine(AppConfig())
    cpu("avx512f")
    with pytest.raises(SpaceMismatch, match=r"Name a precision .* `precision: fp32`"):
        load_engine(choice, threads=1)


def test_the_chosen_engine_is_the_one_that_is_loaded() -> None:
    engine = load_engine(select_engine(AppConfig.model_validate({"model": HASHING})), threads=1)
    assert (engine.info.engine, engine.dim, engine.streams) == ("hashing", 64, 1)
    assert engine.info.parity is None
