"""Engine selection: which engine runs the model, at which precision.

The application selects once, when it is built; every replica then loads that selection.
"""

from dataclasses import dataclass, replace

from serve_app.config import AppConfig
from serve_app.engines.base import Engine
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.errors import ConfigurationError, SpaceMismatch
from serve_app.model_prep.artifact_cache import evict
from serve_app.model_prep.prepared_model import get_prepared_model
from serve_app.model_prep.quantization_ranges import (
    get_or_build_quantization_ranges,
    hashing_quantization_ranges,
    read_quantization_ranges,
)
from serve_app.models import ModelSpec, resolve
from serve_app.types import Float32, Parity

#: For each device, engines and precisions in order of preference. On a GPU the first one is
#: selected untried, because the node that builds the application may have no GPU.
_PREFERENCES = {
    "cpu": (("openvino", "bf16"), ("openvino", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "fp16"), ("torch", "fp32")),
    "mps": (("torch", "fp32"),),
}


@dataclass(frozen=True, slots=True)
class EngineSelection:
    """The model, its engine and its precision, the same in every replica."""

    config: AppConfig  #: the configuration, with engine and precision filled in
    spec: ModelSpec
    parity: Parity | None = None  #: None: the replica measures it, or there is no reference
    rejected: tuple[str, ...] = ()  #: preferred engines that were rejected, with reasons

    @property
    def cached_spec(self) -> ModelSpec:
        """The spec with the space of the vectors that clients get, which the cache may round."""
        dtype = self.config.cache.dtype
        if dtype == "float32":
            return self.spec
        return replace(self.spec, space_id=f"{self.spec.space_id}+{dtype}")


def select_engine(config: AppConfig, *, cpu: CpuFeatures | None = None) -> EngineSelection:
    """Returns the preferred engine of those that the configuration allows and that work.

    An engine or precision that the configuration sets is never replaced by another: if it can't be
    used, selection fails. A model that is new to this machine is prepared first, which takes about
    half a minute.

    Args:
        config: the application's configuration.
        cpu: the CPU to select for; None: this machine's.

    Raises:
        ModelSourceError: the model's files are missing, or have another digest than configured.
        ParityFailed: the configured engine's vectors are too far from sentence-transformers.
        ConfigurationError: no engine can be used; the message says why.
    """
    cpu = cpu or CpuFeatures.detect()
    candidates = _candidates(config)
    rejected: list[str] = []
    for engine, precision in candidates:
        candidate = config.model_copy(update={"engine": engine, "precision": precision})
        spec = resolve(config.model, precision)
        try:
            if config.device == "cpu":
                cpu.require(precision, engine)
            parity, ranges = _prepare(candidate, spec)
        except ConfigurationError as error:
            if len(candidates) == 1:
                raise
            rejected.append(f"{engine} at {precision}: {error}")
            continue
        evict(config.prepared_models_max_bytes)
        return EngineSelection(
            candidate, replace(spec, quantization_ranges=ranges), parity, tuple(rejected)
        )
    raise ConfigurationError("No configured engine can be used. " + " ".join(rejected))


def _candidates(config: AppConfig) -> list[tuple[str, str]]:
    if config.model.hashing_dim is not None:
        return [("hashing", "fp32")]
    if config.engine != "auto" and config.precision != "auto":
        return [(config.engine, config.precision)]
    allowed = [
        (engine, precision)
        for engine, precision in _PREFERENCES[config.device]
        if config.engine in ("auto", engine) and config.precision in ("auto", precision)
    ]
    return allowed or [("torch", config.precision)]


def _prepare(config: AppConfig, spec: ModelSpec) -> tuple[Parity | None, Float32 | None]:
    """Returns parity and quantization ranges; prepares or calibrates the model if necessary.

    The parity of torch is None: the replica measures it when it loads the model.
    """
    if config.engine == "hashing":
        return None, hashing_quantization_ranges(spec.dim)
    if spec.is_static and (config.engine, config.precision) != ("torch", "fp32"):
        raise ConfigurationError("A static model runs with `engine: torch` at `precision: fp32`.")
    if config.engine == "torch":
        return None, get_or_build_quantization_ranges(config.model, spec)
    prepared = get_prepared_model(config.model, spec, config.precision)
    return prepared.parity, read_quantization_ranges(prepared.folder)


def check_space(selection: EngineSelection) -> None:
    """Checks that this machine's model files are those of the selection.

    Raises:
        SpaceMismatch: they are not, so their vectors belong to another space.
    """
    local = resolve(selection.config.model, selection.config.precision)
    if local.space_id != selection.spec.space_id:
        raise SpaceMismatch(
            f"The model files on this node produce vectors of space {local.space_id}, but the "
            f"application was built for space {selection.spec.space_id}. Install the same model on "
            "every node."
        )


def load_engine(selection: EngineSelection, *, threads: int) -> Engine:
    """Loads the selected engine with its model.

    Engines are imported here, when they are needed: a replica with a prepared model never imports
    torch.

    Args:
        selection: the result of `select_engine`.
        threads: CPU threads for the model.

    Raises:
        ConfigurationError: this machine can't run the engine, or its vectors differ from the
            application's.
    """
    config, spec = selection.config, selection.spec
    if config.engine == "hashing":
        from serve_app.engines.hashing_engine import HashingEngine

        return HashingEngine(spec)
    if config.engine == "torch":
        from serve_app.engines.torch_engine import TorchEngine

        return TorchEngine(
            config.model, spec, device=config.device, precision=config.precision, threads=threads
        )
    from serve_app.engines.openvino_engine import OpenVinoEngine

    prepared = get_prepared_model(config.model, spec, config.precision)
    return OpenVinoEngine(
        prepared.folder,
        spec,
        precision=config.precision,
        threads=threads,
        parity=prepared.parity,
    )
