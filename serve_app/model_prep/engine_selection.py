"""Engine selection: which engine runs each model, at which precision.

The application selects once, when it is built; every replica then loads that selection.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256

from serve_app.config import AppConfig, EngineSettings, ModelConfig
from serve_app.engines.base import Engine
from serve_app.engines.cpu_features import INT8_PRECISIONS, CpuFeatures
from serve_app.errors import ConfigurationError, SpaceMismatch
from serve_app.model_prep.alias_check import check_alias_models
from serve_app.model_prep.artifact_cache import evict
from serve_app.model_prep.int8_recipe import recipe_space, space_precision
from serve_app.model_prep.prepared_model import get_prepared_model
from serve_app.model_prep.quantization_ranges import (
    get_or_build_quantization_ranges,
    hashing_quantization_ranges,
    read_quantization_ranges,
)
from serve_app.model_prep.space_check import check_spaces
from serve_app.models import ModelSpec, resolve
from serve_app.types import CacheDtype, Parity

#: For each device, engines and precisions in order of preference. On a GPU the first one is
#: selected untried, because the node that builds the application may have no GPU.
_PREFERENCES = {
    "cpu": (("openvino", "bf16"), ("openvino", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "fp16"), ("torch", "fp32")),
    "mps": (("torch", "fp32"),),
}


@dataclass(frozen=True, slots=True)
class EngineSelection:
    """A model, its engine and its precision, the same in every replica."""

    model: ModelConfig
    spec: ModelSpec
    engine: str
    precision: str
    device: str = "cpu"
    parity: Parity | None = None  #: None: the replica measures it, or there is no reference
    rejected: tuple[str, ...] = ()  #: preferred engines that were rejected, with reasons
    cache_dtype: CacheDtype = "float32"

    @property
    def cached_spec(self) -> ModelSpec:
        """The spec with the space of the vectors that clients get, which the cache may round."""
        if self.cache_dtype == "float32":
            return self.spec
        space_id = f"{self.spec.space_id}+{self.cache_dtype}"
        if self.cache_dtype == "int8" and self.spec.quantization_ranges is not None:
            # With other ranges the same codes are other vectors.
            space_id += f".{sha256(self.spec.quantization_ranges.tobytes()).hexdigest()[:8]}"
        return replace(self.spec, space_id=space_id)


def select_engines(
    config: AppConfig, *, cpu: CpuFeatures | None = None
) -> tuple[EngineSelection, ...]:
    """Returns the engine of each model, in the order of the configuration.

    Raises:
        ConfigurationError: see `iter_engines`.
    """
    return tuple(iter_engines(config, cpu=cpu))


def iter_engines(config: AppConfig, *, cpu: CpuFeatures | None = None) -> Iterator[EngineSelection]:
    """Yields for each model the preferred engine of those that the configuration allows and work.

    An engine or precision that the configuration sets is never replaced by another: if it can't be
    used, selection fails. A model that is new to this machine is prepared first, which takes about
    half a minute.

    Args:
        config: the application's configuration.
        cpu: the CPU to select for; None: this machine's.

    Raises:
        ModelSourceError: a model's files are missing, or have another digest than configured.
        ParityFailed: the configured engine's vectors are too far from sentence-transformers.
        ConfigurationError: no engine can be used, a model doesn't support a task of `default_for`,
            two models are the same, a `fallback` is of another space, models of an alias differ in
            kind, or vectors can't be cached at int8; the message says which.
    """
    cpu = cpu or CpuFeatures.detect()
    specs = dict[str, ModelSpec]()
    for model in config.served_models:
        selection = _select_engine(config, model, cpu)
        spec = selection.spec
        specs[spec.name] = selection.cached_spec
        check_spaces(config.served_models, specs)
        check_alias_models(config.aliases, specs)
        _check_cache_dtype(selection)
        for task in model.default_for:
            if task not in spec.tasks:
                raise ConfigurationError(
                    f"{spec.name} can't be the default for `{task}`: it supports "
                    f"{', '.join(spec.tasks)}. Correct its `default_for`."
                )
        yield selection
    evict(config.prepared_models_max_bytes)


def _select_engine(config: AppConfig, model: ModelConfig, cpu: CpuFeatures) -> EngineSelection:
    settings = config.engine_settings(model)
    candidates = _candidates(model, settings)
    rejected: list[str] = []
    for engine, precision in candidates:
        spec = resolve(model, space_precision(precision))
        try:
            if settings.device == "cpu":
                cpu.require(precision, engine)
            elif len(candidates) > 1:
                _check_untried(spec, precision)
            spec, parity = _prepare(model, spec, engine, precision)
        except ConfigurationError as error:
            if len(candidates) == 1:
                raise
            rejected.append(f"{engine} at {precision}: {error}")
            continue
        return EngineSelection(
            model,
            spec,
            engine,
            precision,
            "remote" if engine == "provider" else settings.device,
            parity,
            tuple(rejected),
            config.cache.dtype,
        )
    raise ConfigurationError(
        f"No configured engine can be used for {model.name}. " + " ".join(rejected)
    )


def _check_cache_dtype(selection: EngineSelection) -> None:
    """Checks that the vectors of a model can be cached as configured.

    Raises:
        ConfigurationError: they can't.
    """
    spec = selection.spec
    has_vectors = not {"embed", "embed_images"}.isdisjoint(spec.tasks)
    if selection.cache_dtype != "int8" or not has_vectors or spec.quantization_ranges is not None:
        return
    if selection.engine == "provider":
        reason = "a provider runs it, and calibration would cost money"
    elif "embed_images" in spec.tasks:
        reason = "the texts of the calibration don't show the range of its images' vectors"
    else:
        reason = "its calibration failed; the log says why"
    raise ConfigurationError(
        f"`cache.dtype: int8` needs the value range of each component, and {spec.name} has none: "
        f"{reason}. Set `cache.dtype` to `float16` or `float32`."
    )


def _candidates(model: ModelConfig, settings: EngineSettings) -> list[tuple[str, str]]:
    if (engine := model.parsed_source.engine) is not None:
        return [(engine, "fp32")]
    if settings.precision in INT8_PRECISIONS:
        return [("openvino", settings.precision)]
    if settings.engine != "auto" and settings.precision != "auto":
        return [(settings.engine, settings.precision)]
    allowed = [
        (engine, precision)
        for engine, precision in _PREFERENCES[settings.device]
        if settings.engine in ("auto", engine) and settings.precision in ("auto", precision)
    ]
    return allowed or [("torch", settings.precision)]


def _check_untried(spec: ModelSpec, precision: str) -> None:
    """Checks that a model is likely to have parity on a GPU, where it can't be tried.

    Raises:
        ConfigurationError: it is not.
    """
    if spec.kind == "cross-encoder" and precision != "fp32":
        raise ConfigurationError(
            f"Scores at {precision} often differ from those at fp32, and a replica finds out only "
            f"when it loads the model. Set `precision: {precision}` to try it."
        )


def _prepare(
    model: ModelConfig, spec: ModelSpec, engine: str, precision: str
) -> tuple[ModelSpec, Parity | None]:
    """Returns spec and parity; prepares or calibrates the model if necessary.

    The spec gets its quantization ranges and, for int8, its space. The parity of torch is None: the
    replica measures it when it loads the model.
    """
    if engine == "provider":
        return spec, None
    if engine == "hashing":
        return replace(spec, quantization_ranges=hashing_quantization_ranges(spec.dim)), None
    if spec.is_static and (engine, precision) != ("torch", "fp32"):
        raise ConfigurationError("A static model runs with `engine: torch` at `precision: fp32`.")
    # Texts don't show the range of images' vectors, and outputs of other kinds aren't quantized.
    embeds_images = "embed_images" in spec.tasks
    has_ranges = spec.kind == "dense" and not embeds_images
    if engine == "torch":
        ranges = get_or_build_quantization_ranges(model, spec) if has_ranges else None
        return replace(spec, quantization_ranges=ranges), None
    if embeds_images:
        # Its images are decoded by transformers, so a replica would import torch all the same.
        raise ConfigurationError("A model that embeds images runs with `engine: torch`.")
    if precision in INT8_PRECISIONS and spec.kind != "dense":
        raise ConfigurationError(
            f"`precision: {precision}` is for dense models, whose loss is measured; {spec.name} is "
            f"a {spec.kind} model. Set `precision: fp32`."
        )
    prepared = get_prepared_model(model, spec, precision)
    ranges = read_quantization_ranges(prepared.folder) if has_ranges else None
    return replace(spec, space_id=prepared.space_id, quantization_ranges=ranges), prepared.parity


def check_space(selection: EngineSelection) -> None:
    """Checks that this machine's model files are those of the selection.

    Raises:
        SpaceMismatch: they are not, so their vectors belong to another space.
    """
    local = resolve(selection.model, space_precision(selection.precision))
    if local.space_id != recipe_space(selection.spec.space_id, selection.precision):
        raise SpaceMismatch(
            f"The files of {local.name} on this node produce vectors of space {local.space_id}, "
            f"but the application was built for space {selection.spec.space_id}. Install the same "
            "model on every node."
        )


def load_engine(
    selection: EngineSelection, *, threads: int, gpu_memory_share: float | None = None
) -> Engine:
    """Loads the selected engine with its model.

    Engines are imported here, when they are needed: a replica with a prepared model never imports
    torch.

    Args:
        selection: a result of `select_engines`.
        threads: CPU threads for the model.
        gpu_memory_share: share of the GPU's memory that this process may use; None: all.

    Raises:
        ConfigurationError: this machine can't run the engine, or its vectors differ from the
            application's.
        SpaceMismatch: a model was quantized here with other scales than the application's.
    """
    model, spec, precision = selection.model, selection.spec, selection.precision
    if selection.engine == "hashing":
        from serve_app.engines.hashing_engine import HashingEngine

        return HashingEngine(spec, model.batch_cost)
    if selection.engine == "torch":
        from serve_app.engines.torch_engine import TorchEngine

        return TorchEngine(
            model,
            spec,
            device=selection.device,
            precision=precision,
            threads=threads,
            gpu_memory_share=gpu_memory_share,
        )
    from serve_app.engines.openvino_engine import OpenVinoEngine

    recipe_spec = replace(spec, space_id=recipe_space(spec.space_id, precision))
    prepared = get_prepared_model(model, recipe_spec, precision)
    if prepared.space_id != spec.space_id:
        raise SpaceMismatch(
            f"Calibration on this node found other scales for {spec.name} than the application's: "
            f"its space is {prepared.space_id}, not {spec.space_id}. Copy the prepared model to "
            "this node, or share the user's cache directory."
        )
    return OpenVinoEngine(
        prepared.folder,
        spec,
        precision=precision,
        threads=threads,
        parity=prepared.parity,
    )
