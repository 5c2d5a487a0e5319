"""Which engine runs the model: chosen once, when the application is built."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.config import AppConfig
from serve_app.engines.base import Engine
from serve_app.errors import ConfigurationError, SpaceMismatch
from serve_app.model_prep.prepared_model import prepared
from serve_app.model_prep.quantization_ranges import (
    get_or_build_quantization_ranges,
    hashing_quantization_ranges,
    read_quantization_ranges,
)
from serve_app.models import ModelSpec, resolve
from serve_app.types import Float32, Parity

#: Engine and precision, best first. A GPU's are not tried: the node that builds may have none.
_BEST = {
    "cpu": (("openvino", "bf16"), ("openvino", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "fp16"), ("torch", "fp32")),
}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class EngineSelection:
    """What is served and by which engine, the same in every replica."""

    config: AppConfig  #: as asked for, engine and precision named
    spec: ModelSpec
    parity: Parity | None = None  #: None: not measured yet, or nothing to compare
    refused: tuple[str, ...] = ()  #: better engines that were not taken, and why


def select_engine(config: AppConfig) -> EngineSelection:
    """The best engine of those that the configuration allows and that prove themselves.

    What the configuration names is held fast: it is taken or refused, never replaced. A model
    that is new to this machine is prepared first, which takes half a minute.

    Raises:
        ModelSourceError: the model's files are missing or not the ones that were asked for.
        ParityFailed: the named engine's vectors are too far from those of sentence-transformers.
        ConfigurationError: none can be had; the message says why.
    """
    candidates = _candidates(config)
    refused: list[str] = []
    for engine, precision in candidates:
        settled = config.model_copy(update={"engine": engine, "precision": precision})
        spec = resolve(config.model, precision)
        try:
            parity, quantization_ranges = _proven(settled, spec)
        except ConfigurationError as error:
            if len(candidates) == 1:
                raise
            refused.append(f"{engine} at {precision}: {error}")
            continue
        return EngineSelection(
            settled, replace(spec, quantization_ranges=quantization_ranges), parity, tuple(refused)
        )
    raise ConfigurationError("No engine that was asked for can be had. " + " ".join(refused))


def _candidates(config: AppConfig) -> list[tuple[str, str]]:
    if config.model.hashing_dim is not None:
        return [("hashing", "fp32")]
    if config.engine != "auto" and config.precision != "auto":
        return [(config.engine, config.precision)]
    found = [
        (engine, precision)
        for engine, precision in _BEST[config.device]
        if config.engine in ("auto", engine) and config.precision in ("auto", precision)
    ]
    return found or [("torch", config.precision)]


def _proven(config: AppConfig, spec: ModelSpec) -> tuple[Parity | None, Float32 | None]:
    """What the gate measured of the engine, where a replica needn't load it first; and ranges."""
    if config.engine == "hashing":
        return None, hashing_quantization_ranges(spec.dim)
    if config.engine != "openvino":
        return None, get_or_build_quantization_ranges(config.model, spec)
    _check_cpu(config)
    found = prepared(config.model, spec, config.precision)
    return found.parity, read_quantization_ranges(found.folder)


def load_engine(choice: EngineSelection, *, threads: int) -> Engine:
    """The chosen engine, its model loaded.

    An engine's libraries are imported only when it is chosen: a replica with a prepared model
    never pays for torch.

    Args:
        choice: what `select_engine` gave.
        threads: CPU threads for the model.

    Raises:
        ConfigurationError: it can't be loaded here, or its vectors are not the model's.
    """
    config, spec = choice.config, choice.spec
    if config.engine == "openvino":
        _check_cpu(config)
        from serve_app.engines.openvino_engine import OpenVinoEngine

        found = prepared(config.model, spec, config.precision)
        return OpenVinoEngine(
            found.folder,
            spec,
            precision=config.precision,
            threads=threads,
            parity=found.parity,
        )
    if config.engine == "hashing":
        from serve_app.engines.hashing_engine import HashingEngine

        return HashingEngine(spec)
    from serve_app.engines.torch_engine import TorchEngine

    return TorchEngine(
        config.model, spec, device=config.device, precision=config.precision, threads=threads
    )


def _check_cpu(config: AppConfig) -> None:
    """Refuses bf16 where OpenVINO would quietly compute in fp32 and give vectors of another space.

    Raises:
        SpaceMismatch: this machine's CPU has no bf16.
    """
    if config.precision == "bf16" and not _has_bf16(_CPUINFO):
        raise SpaceMismatch(
            "OpenVINO computes in bf16 on CPUs with AVX512-BF16 or AMX only, and this one has "
            "neither. Name a precision that every machine has: `precision: fp32`."
        )


def _has_bf16(cpuinfo: Path) -> bool:
    if not cpuinfo.is_file():
        return False
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())
