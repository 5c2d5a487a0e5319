"""The engine that runs a model through sentence-transformers, on a CPU or a GPU."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from serve_app.config import ModelConfig
from serve_app.engines.base import ModelInput, Rows, TokenIds, unsupported_task
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.engines.parity import MIN_COSINE, measure_parity, meets_min_cosine, parity_texts
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.errors import (
    ConfigurationError,
    ParityFailed,
    SpaceMismatch,
    UnsupportedOperation,
)
from serve_app.models import ModelSpec, model_dir
from serve_app.tasks import Task
from serve_app.types import EngineInfo, Float32, Parity

#: On a GPU, one thread pads and copies the next batch while another's batch computes.
_STREAMS = {"cpu": 1, "cuda": 2, "mps": 1}


class TorchEngine:
    """Runs a sentence-transformers pipeline on batches that are tokenized already."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        *,
        device: str,
        threads: int,
        precision: str = "fp32",
    ) -> None:
        """Loads the model from the files that `spec` was read from.

        Args:
            config: the model's source.
            spec: the model as the application promises it.
            device: `cpu`, `cuda` or `mps`.
            threads: CPU threads for one run of the model.
            precision: `fp32`, `bf16` or `fp16`; vectors are float32 at each of them.

        Raises:
            SpaceMismatch: the loaded model has another width or token limit than `spec`.
            ModelSourceError: the model has no fast tokenizer.
            ParityFailed: at this precision the vectors are too far from those at fp32.
            ConfigurationError: PyTorch can't reach the device, or the CPU doesn't compute the
                precision natively.
        """
        _check_device(device, precision)
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._thread_local = threading.local()  # holds each thread's CUDA stream
        self.streams = _STREAMS[device]
        self._model = load_pipeline(config, device)
        self._is_static = spec.is_static
        from_model = (
            TextTokenizer.from_static if spec.is_static else TextTokenizer.from_transformers
        )
        self.tokenizer = from_model(self._model.tokenizer, spec.max_tokens)
        self._bf16 = False
        # A static model has no limit but that of its tokenizer.
        limit = spec.max_tokens if spec.is_static else self._model.max_seq_length
        loaded = (self.dim, limit)
        if loaded != (spec.dim, spec.max_tokens):
            raise SpaceMismatch(
                f"The loaded model has (dim, max_tokens) = {loaded}, its files promise "
                f"{(spec.dim, spec.max_tokens)}. Set `model.max_tokens` in the configuration."
            )
        self._info = EngineInfo(
            engine="torch",
            device=torch.cuda.get_device_name(self._device) if device == "cuda" else device,
            precision=precision,
            threads=threads,
            space_id=spec.space_id,
            versions={
                name: version(name) for name in ("torch", "sentence-transformers", "transformers")
            },
            parity=None if precision == "fp32" else self._reduce_precision(precision, spec),
        )

    @property
    def info(self) -> EngineInfo:
        """The engine, its device, precision and versions."""
        return self._info

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self._model.get_embedding_dimension() or 0)

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that `run` computes."""
        return frozenset(("embed",)) if self._is_static else frozenset(("embed", "embed_tokens"))

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        """Returns the output of each input, from one padded run of the pipeline.

        Raises:
            MemoryError: the batch doesn't fit into the GPU's memory.
            UnsupportedOperation: the engine doesn't support the task.
        """
        if self._is_static and task == "embed_tokens":
            raise UnsupportedOperation(
                "The vectors of a static model's tokens don't depend on the text: it has no token "
                "embeddings.",
                "texts",
            )
        if task not in self.tasks:
            raise unsupported_task(task, self.tasks)
        tokens = cast("Sequence[TokenIds]", batch)
        if task == "embed":
            return self._run(tokens, "sentence_embedding")
        return self.tokenizer.unpad(self._run(tokens, "token_embeddings"), tokens)

    def _run(self, batch: Sequence[TokenIds], feature: str) -> Float32:
        inputs = (self.tokenizer.concatenate if self._is_static else self.tokenizer.pad)(batch)
        try:
            return self._forward(inputs, feature)
        except torch.OutOfMemoryError as error:
            error.with_traceback(None)  # its frames reference the tensors that filled the memory
            torch.cuda.empty_cache()
            raise MemoryError(f"A batch of {len(batch)} texts doesn't fit on the GPU.") from error

    def _forward(self, inputs: Mapping[str, NDArray[np.int64]], feature: str) -> Float32:
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        with torch.inference_mode(), self._stream(), autocast:
            features = self._model.forward({k: self._to_device(v) for k, v in inputs.items()})
            # The copy to the CPU waits for this stream.
            vectors: Float32 = features[feature].float().cpu().numpy()
        return vectors

    def _to_device(self, array: NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Selects a CUDA stream for the calling thread, so that threads don't block each other."""
        if self._device.type != "cuda":
            yield
            return
        if not hasattr(self._thread_local, "stream"):
            stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # The model is loaded on the default stream, which may still be copying.
            stream.wait_stream(torch.cuda.default_stream(self._device))
            self._thread_local.stream = stream
        with torch.cuda.stream(self._thread_local.stream):
            yield

    def _reduce_precision(self, precision: str, spec: ModelSpec) -> Parity:
        """Switches the model from fp32 to a lower precision and measures its parity.

        fp16 converts the transformer only; pooling and later modules sum many values and stay at
        fp32. bf16 has too few digits for that, so only matrix products use it (autocast).
        """
        texts = parity_texts(spec.max_tokens)
        expected: Float32 = np.asarray(self._model.encode(texts, prompt=""), dtype=np.float32)
        self._bf16 = precision == "bf16"
        if precision == "fp16":
            self._model[0].half().register_forward_hook(_upcast_outputs)
        parity = measure_parity(self, texts, expected, precision)
        if not meets_min_cosine(parity):
            raise ParityFailed(
                f"With torch at {precision} the vectors of {spec.name} are only within cosine "
                f"{parity.cosine_min:.6f} of those at fp32; {MIN_COSINE[precision]} is required. "
                "Set `precision: fp32`."
            )
        return parity


def load_pipeline(config: ModelConfig, device: str) -> SentenceTransformer:
    """Loads a model at fp32, whatever the precision of its files."""
    model = SentenceTransformer(
        str(model_dir(config)),
        device=device,
        trust_remote_code=config.trust_remote_code,
        local_files_only=True,
    )
    if config.max_tokens is not None:
        limit_tokens(model, config.max_tokens)
    return model.float().eval()


def limit_tokens(model: SentenceTransformer, max_tokens: int) -> None:
    """Sets the token limit of a model."""
    if isinstance(model[0], StaticEmbedding):
        model[0].tokenizer.enable_truncation(max_tokens)
    else:
        model.max_seq_length = max_tokens


def _check_device(device: str, precision: str) -> None:
    """Raises ConfigurationError if this machine can't run a model on the device."""
    if device == "cpu":
        CpuFeatures.detect().require(precision)
    elif device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "PyTorch sees no GPU: install its build with CUDA, and a driver for it."
        )
    elif device == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError(
            "PyTorch has no MPS here: `device: mps` needs a Mac with an Apple GPU. Set `device: "
            "cpu`."
        )


def _upcast_outputs(module: torch.nn.Module, args: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Converts every floating-point output of a module to fp32."""
    return {
        name: value.float()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in features.items()
    }
