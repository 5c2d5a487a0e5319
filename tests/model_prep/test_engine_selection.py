"""Engine selection for several CPUs, with a stand-in for model preparation."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedserve_client.space import Space
from serve_app.config import MINILM, AppConfig, ModelConfig
from serve_app.engines.cpu_features import INT8_PRECISIONS, CpuFeatures
from serve_app.errors import ConfigurationError, ModelSourceError, ParityFailed, SpaceMismatch
from serve_app.model_prep import engine_selection
from serve_app.model_prep.engine_selection import (
    EngineSelection,
    check_space,
    load_engine,
    select_engines,
)
from serve_app.model_prep.prepared_model import PreparedModel
from serve_app.models import ModelSpec
from serve_app.types import Float32, Parity
from tests import tiny_models

HASHING = {"name": "words", "source": "hashing:64"}
#: A CPU that computes every precision natively, and one that computes fp32 only.
FULL_CPU = CpuFeatures(frozenset({"avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni"}))
FP32_CPU = CpuFeatures(frozenset({"avx512f"}))


@pytest.fixture(autouse=True)
def preparation_errors(monkeypatch: pytest.MonkeyPatch) -> dict[str, ConfigurationError]:
    """The errors of model preparation, by precision; without one it succeeds at once."""
    errors: dict[str, ConfigurationError] = {}

    def prepare(config: ModelConfig, spec: ModelSpec, precision: str) -> PreparedModel:
        if precision in errors:
            raise errors[precision]
        scales = ".scales" if precision.startswith("int8") else ""
        return PreparedModel(
            Path("prepared"), Parity(precision, 50, 0.99995), spec.space_id + scales
        )

    monkeypatch.setattr(engine_selection, "get_prepared_model", prepare)
    return errors


@pytest.fixture(autouse=True)
def ranges(monkeypatch: pytest.MonkeyPatch) -> dict[str, Float32 | None]:
    """The ranges in the folder of a `prepared` model, and those that are `calibrated`."""
    stored: dict[str, Float32 | None] = {
        "prepared": np.array([[-2], [2]], dtype=np.float32),
        "calibrated": np.array([[-3], [3]], dtype=np.float32),
    }
    monkeypatch.setattr(
        engine_selection, "read_quantization_ranges", lambda folder: stored[folder.name]
    )
    monkeypatch.setattr(
        engine_selection,
        "get_or_build_quantization_ranges",
        lambda config, spec: stored["calibrated"],
    )
    return stored


def select(*, cpu: CpuFeatures = FULL_CPU, **settings: Any) -> EngineSelection:
    (selection,) = select_engines(AppConfig.model_validate(settings), cpu=cpu)
    return selection


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
def test_the_preferred_engine_that_the_configuration_allows_is_selected(
    settings: dict[str, Any], expected: tuple[str, str]
) -> None:
    selection = select(**settings)
    assert (selection.engine, selection.precision) == expected
    assert selection.spec.space_id.endswith(f"-{expected[1]}")
    assert selection.rejected == ()
    assert (selection.parity is not None) == (expected[0] == "openvino")
    assert pickle.loads(pickle.dumps(selection)) == selection


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
def test_ranges_are_part_of_the_selection_and_survive_pickling(
    settings: dict[str, Any], expected: list[list[float]]
) -> None:
    ranges = pickle.loads(pickle.dumps(select(**settings))).spec.quantization_ranges
    assert ranges.tolist() == expected
    assert ranges.dtype == np.float32


def test_a_model_without_ranges_is_selected(ranges: dict[str, Float32 | None]) -> None:
    ranges["prepared"] = None
    selection = select()
    assert selection.engine == "openvino"
    assert selection.spec.quantization_ranges is None
    assert selection.rejected == ()


def test_a_cpu_without_bf16_gets_fp32_and_the_reason() -> None:
    selection = select(cpu=FP32_CPU)
    assert (selection.engine, selection.precision) == ("openvino", "fp32")
    (rejected,) = selection.rejected
    assert rejected.startswith("openvino at bf16: This CPU can't compute bf16 natively")


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "int8"},
        {"precision": "int8-fast"},
        {"engine": "openvino", "precision": "bf16"},
        {"engine": "torch", "precision": "bf16"},
        {"engine": "torch", "precision": "fp16"},
    ],
    ids=str,
)
def test_a_configured_precision_that_the_cpu_would_emulate_is_an_error(
    settings: dict[str, Any], preparation_errors: dict[str, ConfigurationError]
) -> None:
    preparation_errors[settings["precision"]] = ParityFailed("it was prepared all the same")
    with pytest.raises(ConfigurationError, match=r"natively.*neither.*`precision: fp32`"):
        select(cpu=FP32_CPU, **settings)


@pytest.mark.parametrize("precision", INT8_PRECISIONS)
@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_int8_runs_with_openvino_in_a_space_of_its_own(precision: str, engine: str) -> None:
    selection = select(precision=precision, engine=engine)
    assert (selection.engine, selection.precision) == ("openvino", precision)
    space = Space.parse(selection.spec.space_id)
    assert space.precision.endswith(".scales")
    others = [select(precision=name).spec.space_id for name in ("fp32", "bf16")]
    others += [
        select(precision=name).spec.space_id for name in INT8_PRECISIONS if name != precision
    ]
    for other in map(Space.parse, others):
        assert other.family == space.family
        assert not space.is_comparable_to(other)
    check_space(selection)


def test_a_replica_that_quantized_with_other_scales_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection = select(precision="int8")

    def prepare(config: ModelConfig, spec: ModelSpec, precision: str) -> PreparedModel:
        return PreparedModel(Path("prepared"), Parity(precision, 50, 1.0), spec.space_id + ".other")

    monkeypatch.setattr(engine_selection, "get_prepared_model", prepare)
    with pytest.raises(SpaceMismatch, match=r"other scales.*\.other, not .*\.scales"):
        load_engine(selection, threads=1)


def test_a_replica_with_another_recipe_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = select(precision="int8")
    monkeypatch.setattr(
        engine_selection, "space_precision", lambda precision: f"{precision}.recipe"
    )
    with pytest.raises(SpaceMismatch, match=r"int8\.recipe, but"):
        check_space(selection)


def test_auto_selects_no_int8(preparation_errors: dict[str, ConfigurationError]) -> None:
    preparation_errors |= {name: ParityFailed("too far") for name in ("bf16", "fp32")}
    assert (select().engine, select().precision) == ("torch", "fp32")
    with pytest.raises(ConfigurationError, match="No configured engine"):
        select(engine="openvino")


def test_int8_is_for_dense_models(tmp_path: Path) -> None:
    model = tiny_models.cross_encoder(tmp_path).model_dump()
    with pytest.raises(ConfigurationError, match=r"`precision: int8` is for dense models"):
        select(precision="int8", model=model)


def test_a_gpu_needs_no_instruction_sets_of_the_cpu() -> None:
    selection = select(cpu=CpuFeatures(frozenset()), device="cuda")
    assert (selection.engine, selection.precision) == ("torch", "fp16")


def test_without_an_explicit_cpu_it_selects_for_this_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    (selection,) = select_engines(AppConfig())
    assert selection.precision == "fp32"


def test_rejected_engines_are_listed_and_the_next_one_is_selected(
    preparation_errors: dict[str, ConfigurationError],
) -> None:
    preparation_errors["bf16"] = ParityFailed("too far")
    selection = select()
    assert (selection.engine, selection.precision) == ("openvino", "fp32")
    assert selection.rejected == ("openvino at bf16: too far",)
    preparation_errors["fp32"] = ConfigurationError("can't be converted")
    selection = select()
    assert (selection.engine, selection.precision) == ("torch", "fp32")
    assert [reason.split(":")[0] for reason in selection.rejected] == [
        "openvino at bf16",
        "openvino at fp32",
    ]


def test_a_configured_engine_is_never_replaced(
    preparation_errors: dict[str, ConfigurationError],
) -> None:
    preparation_errors["fp32"] = ParityFailed("too far")
    with pytest.raises(ParityFailed, match="too far"):
        select(engine="openvino", precision="fp32")
    with pytest.raises(ConfigurationError, match=r"No configured engine .* neither.* too far"):
        select(engine="openvino", cpu=FP32_CPU)


def test_a_missing_model_is_not_an_engines_fault() -> None:
    with pytest.raises(ModelSourceError, match=r"no `modules.json`"):
        select(model={"name": "m", "source": "path:/nowhere"})


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_a_replica_whose_cpu_would_emulate_the_precision_does_not_start(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection = select(engine=engine, precision="bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    with pytest.raises(ConfigurationError, match=r"bf16 natively.*`precision: fp32`"):
        load_engine(selection, threads=1)


def test_the_selected_engine_is_loaded() -> None:
    engine = load_engine(select(model=HASHING), threads=1)
    assert (engine.info.engine, engine.streams) == ("hashing", 1)
    assert np.shape(engine.run("embed", engine.tokenizer.encode(["a"]))) == (1, 64)
    assert engine.info.parity is None


def test_each_model_has_a_selection_of_its_own(
    preparation_errors: dict[str, ConfigurationError],
) -> None:
    preparation_errors["bf16"] = ParityFailed("too far")
    minilm = MINILM.model_dump()
    models = [
        {**HASHING, "engine": "hashing", "precision": "fp32"},
        {**minilm, "name": "minilm", "aliases": [], "precision": "bf16", "engine": "torch"},
        minilm,
    ]
    selections = select_engines(AppConfig.model_validate({"models": models}), cpu=FULL_CPU)
    assert [(s.spec.name, s.engine, s.precision) for s in selections] == [
        ("words", "hashing", "fp32"),
        ("minilm", "torch", "bf16"),
        (MINILM.name, "openvino", "fp32"),
    ]
    assert [len(selection.rejected) for selection in selections] == [0, 0, 1]


def test_two_models_with_the_same_vectors_are_an_error() -> None:
    models = [HASHING, {**HASHING, "name": "again"}]
    with pytest.raises(ConfigurationError, match=r"'words' and 'again' are the same.*`aliases`"):
        select_engines(AppConfig.model_validate({"models": models}))


def test_two_engines_of_one_space_are_a_chain() -> None:
    models = [
        {**HASHING, "fallback": ["again", "third"]},
        {**HASHING, "name": "again"},
        {**HASHING, "name": "third"},
    ]
    specs = [s.spec for s in select_engines(AppConfig.model_validate({"models": models}))]
    assert len({spec.space_id for spec in specs}) == 1
    assert len({spec.engine_id for spec in specs}) == 3


@pytest.mark.parametrize("first", [0, 1])
def test_a_fallback_of_another_space_has_to_be_allowed(first: int) -> None:
    """Whichever of the two entries comes first in the list."""
    fallback: dict[str, Any] = {"fallback": ["other"]}
    other = {"name": "other", "source": "hashing:32"}
    models = [{**HASHING, **fallback}, other]
    both = AppConfig.model_validate({"models": [HASHING, other]})
    spaces = [selection.spec.space_id for selection in select_engines(both)]
    ordered = [models[first], models[1 - first]]
    with pytest.raises(ConfigurationError, match=f"{spaces[1]}, not {spaces[0]}.*allow_space"):
        select_engines(AppConfig.model_validate({"models": ordered}))
    models[0]["allow_space_change"] = True
    select_engines(AppConfig.model_validate({"models": models}))
    third = {**HASHING, "name": "third"}
    models[0]["fallback"] = ["other", "third"]
    with pytest.raises(ConfigurationError, match=r"before third.*same space first"):
        select_engines(AppConfig.model_validate({"models": [*models, third]}))


def test_a_model_spills_over_within_its_space_only() -> None:
    spilling = {"fallback": ["other"], "spill_over_after_s": 1, "allow_space_change": True}
    models: list[dict[str, Any]] = [
        {**HASHING, **spilling},
        {**HASHING, "name": "other", "deployment": "Other"},
    ]
    select_engines(AppConfig.model_validate({"models": models}))
    models[1]["source"] = "hashing:32"
    with pytest.raises(ConfigurationError, match=r"words can't spill over to other, whose space"):
        select_engines(AppConfig.model_validate({"models": models}))


def test_a_fallback_has_a_task_in_common(tmp_path: Path) -> None:
    reranker = tiny_models.cross_encoder(tmp_path).model_dump()
    first = {**HASHING, "fallback": [reranker["name"]], "allow_space_change": True}
    with pytest.raises(ConfigurationError, match="supports none of its tasks: embed"):
        select_engines(AppConfig.model_validate({"models": [first, reranker]}))


def test_a_default_model_supports_the_task() -> None:
    with pytest.raises(ConfigurationError, match=r"words can't be the default for `rerank`: it"):
        select(model={**HASHING, "default_for": ["rerank"]})


@pytest.mark.parametrize(
    ("name", "engine", "precision", "has_ranges"),
    [
        ("dense", "openvino", "bf16", True),
        ("reranker", "openvino", "bf16", False),
        ("sparse", "openvino", "bf16", False),
        ("multi-vector", "openvino", "bf16", False),
        ("image", "torch", "fp32", False),
    ],
)
def test_the_engine_of_each_kind(
    tmp_path: Path, name: str, engine: str, precision: str, has_ranges: bool
) -> None:
    """Only dense vectors of texts are quantized. Images are decoded by transformers."""
    config = tiny_models.BUILDERS[name](tmp_path).model_dump()
    selection = select(model=config)
    assert (selection.engine, selection.precision) == (engine, precision)
    assert (selection.spec.quantization_ranges is not None) == has_ranges
    assert select(model={**config, "engine": "torch"}).engine == "torch"
    if engine == "torch":
        with pytest.raises(ConfigurationError, match="embeds images runs with `engine: torch`"):
            select(model={**config, "engine": "openvino", "precision": "fp32"})


def test_a_cross_encoder_on_a_gpu_runs_at_fp32_unless_the_precision_is_set(tmp_path: Path) -> None:
    config = tiny_models.cross_encoder(tmp_path).model_dump()
    selection = select(model=config, device="cuda")
    assert (selection.engine, selection.precision) == ("torch", "fp32")
    assert "Set `precision: fp16` to try it" in selection.rejected[0]
    assert select(model=config, device="cuda", precision="fp16").precision == "fp16"
    sparse = tiny_models.sparse(tmp_path / "sparse").model_dump()
    assert select(model=sparse, device="cuda").precision == "fp16"


def test_vectors_cached_at_int8_are_a_space_of_their_model_and_ranges(
    ranges: dict[str, Float32 | None],
) -> None:
    first = select(cache={"dtype": "int8"})
    assert first.cached_spec.space_id.startswith(f"{first.spec.space_id}+int8.")
    assert select(cache={"dtype": "int8"}).cached_spec.space_id == first.cached_spec.space_id
    ranges["prepared"] = np.array([[-2], [3]], dtype=np.float32)
    second = select(cache={"dtype": "int8"})
    assert second.spec.space_id == first.spec.space_id
    assert second.cached_spec.space_id != first.cached_spec.space_id


def test_vectors_without_ranges_are_not_cached_at_int8(
    tmp_path: Path, ranges: dict[str, Float32 | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = {"dtype": "int8"}
    image = tiny_models.BUILDERS["image"](tmp_path / "image").model_dump()
    with pytest.raises(ConfigurationError, match="don't show the range of its images' vectors"):
        select(model=image, cache=int8)
    monkeypatch.setenv("KEY", "sk-1")
    remote = {"name": "remote", "source": "openai:text-embedding-3-small"}
    with pytest.raises(ConfigurationError, match="a provider runs it"):
        select(model=remote, cache=int8)
    ranges["prepared"] = None
    with pytest.raises(ConfigurationError, match=r"calibration failed.*Set `cache.dtype` to"):
        select(cache=int8)
    assert select(cache={"dtype": "float16"}).cached_spec.space_id.endswith("+float16")
    reranker = tiny_models.BUILDERS["reranker"](tmp_path / "reranker").model_dump()
    assert select(model=reranker, cache=int8).engine == "openvino"
