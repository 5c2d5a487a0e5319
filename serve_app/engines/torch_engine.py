"""The engine that runs a model through sentence-transformers, on a CPU or a GPU."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from serve_app.config import ModelConfig
from serve_app.engines.base import (
    ModelInput,
    Pixels,
    Rows,
    TokenIds,
    engine_tasks,
    sub_batches,
    unsupported_task,
)
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.engines.library_model import (
    FEATURES,
    LibraryModel,
    load_model,
    load_tokenizer,
    loaded_limits,
    reference_outputs,
)
from serve_app.engines.parity import describe_shortfall, has_parity, measure_parity, parity_inputs
from serve_app.engines.rows import output_rows
from serve_app.errors import (
    ConfigurationError,
    ParityFailed,
    SpaceMismatch,
    UnsupportedOperation,
)
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import EngineInfo, Float32, Gpu, Parity

#: On a GPU, one thread pads and copies the next batch while another's batch computes.
_STREAMS = {"cpu": 1, "cuda": 2, "mps": 1}
#: Upper bound of what a CUDA context with PyTorch's kernels takes on current GPUs.
_CUDA_CONTEXT_BYTES = 512 << 20


class TorchEngine:
    """Runs a model of sentence-transformers on batches that are tokenized already."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        *,
        device: str,
        threads: int,
        precision: str = "fp32",
        gpu_memory_share: float | None = None,
    ) -> None:
        """Loads the model from the files that `spec` was read from.

        Args:
            config: the model's source.
            spec: the model as the application promises it.
            device: `cpu`, `cuda` or `mps`.
            threads: CPU threads for one run of the model.
            precision: `fp32`, `bf16` or `fp16`; vectors are float32 at each of them.
            gpu_memory_share: share of the GPU's memory that this process may use; None: all.

        Raises:
            SpaceMismatch: the loaded model has another width or token limit than `spec`.
            ModelSourceError: the model has no fast tokenizer.
            ParityFailed: at this precision the vectors are too far from those at fp32.
            ConfigurationError: PyTorch can't reach the device, the CPU doesn't compute the
                precision natively, or the model doesn't fit into its share of the GPU's memory.
        """
        _check_device(device, precision)
        gpu = share_gpu(gpu_memory_share) if device == "cuda" else None
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._thread_local = threading.local()  # holds each thread's CUDA stream
        self.streams = _STREAMS[device]
        self._model = _load_model(config, spec, device)
        self._is_static, self._dim = spec.is_static, spec.dim
        self.tasks = engine_tasks(spec)
        self.tokenizer = load_tokenizer(self._model, spec)
        if "embed_images" in self.tasks:
            from serve_app.engines.image_tokenizer import ImageTokenizer

            self.tokenizer = ImageTokenizer(self.tokenizer, self._model[0])
        self._bf16 = False
        loaded = loaded_limits(self._model, spec)
        if loaded != (spec.dim, spec.max_tokens):
            raise SpaceMismatch(
                f"The loaded model has (dim, max_tokens) = {loaded}, its files promise "
                f"{(spec.dim, spec.max_tokens)}. Set `model.max_tokens` in the configuration."
            )
        self._info = EngineInfo(
            engine="torch",
            device=gpu.name if gpu else device,
            precision=precision,
            threads=threads,
            space_id=spec.space_id,
            versions={
                name: version(name) for name in ("torch", "sentence-transformers", "transformers")
            },
            parity=None if precision == "fp32" else self._reduce_precision(precision, spec),
            gpu=gpu,
        )

    @property
    def info(self) -> EngineInfo:
        """The engine, its device, precision and versions."""
        return self._info

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
        try:
            if task == "embed_images":
                return self._run_images(cast("Sequence[Pixels]", batch))
            return self._run_texts(task, cast("Sequence[TokenIds]", batch))
        except torch.OutOfMemoryError as error:
            error.with_traceback(None)  # its frames reference the tensors that filled the memory
            torch.cuda.empty_cache()
            raise MemoryError(f"A batch of {len(batch)} texts doesn't fit on the GPU.") from error

    def _run_texts(self, task: Task, batch: Sequence[TokenIds]) -> Rows:
        if task == "embed_sparse":
            parts = sub_batches(batch, self._dim)
            return [row for part in parts for row in self._run_padded(task, part)]
        return self._run_padded(task, batch)

    def _run_padded(self, task: Task, batch: Sequence[TokenIds]) -> Rows:
        inputs = (self.tokenizer.concatenate if self._is_static else self.tokenizer.pad)(batch)
        return output_rows(task, self._forward(inputs, FEATURES[task]), batch, self.tokenizer)

    def _run_images(self, batch: Sequence[Pixels]) -> Rows:
        values = np.stack([image.values for image in batch])
        if self._info.precision == "fp16":
            values = values.astype(np.float16)
        inputs = {"pixel_values": values}
        return self._forward(inputs, FEATURES["embed_images"], modality="image")

    def _forward(
        self, inputs: Mapping[str, NDArray[Any]], feature: str, *, modality: str = "text"
    ) -> Float32:
        autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        with torch.inference_mode(), self._stream(), autocast:
            features: Any = {name: self._to_device(array) for name, array in inputs.items()}
            features = self._model.forward(features | {"modality": modality})
            # The copy to the CPU waits for this stream.
            vectors: Float32 = features[feature].float().cpu().numpy()
        return vectors

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
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
        inputs = parity_inputs(spec)
        expected = {
            task: reference_outputs(self._model, task, values) for task, values in inputs.items()
        }
        self._bf16 = precision == "bf16"
        if precision == "fp16":
            self._model[0].half().register_forward_hook(_upcast_outputs)
        parity = measure_parity(self, inputs, expected, precision)
        if not has_parity(parity):
            raise ParityFailed(
                f"With torch at {precision}, {describe_shortfall(parity)} ({spec.name}). Set "
                "`precision: fp32`."
            )
        return parity


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


def _load_model(config: ModelConfig, spec: ModelSpec, device: str) -> LibraryModel:
    """Returns the model.

    Raises:
        ConfigurationError: it doesn't fit into the GPU's memory.
    """
    try:
        return load_model(config, spec, device)
    except torch.OutOfMemoryError:
        raise ConfigurationError(
            f"{spec.name} doesn't fit into this replica's share of the GPU's memory. Raise "
            "`num_gpus` or `gpu_memory_share`, or give the model a deployment of its own."
        ) from None


def share_gpu(share: float | None) -> Gpu:
    """Limits the memory of the GPU that tensors of this process take; returns the GPU.

    PyTorch doesn't count the CUDA context, so it is taken off the share.

    Raises:
        ConfigurationError: the share holds no more than the context.
    """
    properties = torch.cuda.get_device_properties(0)
    memory_bytes, limit_bytes = int(properties.total_memory), None
    if share is not None:
        limit_bytes = int(share * memory_bytes) - _CUDA_CONTEXT_BYTES
        if limit_bytes <= 0:
            raise ConfigurationError(
                f"{share:.0%} of the memory of {properties.name} hold no more than the CUDA "
                "context of the process. Raise `num_gpus`, or `gpu_memory_share` if it is set."
            )
        torch.cuda.set_per_process_memory_fraction(limit_bytes / memory_bytes, 0)
    return Gpu(properties.name, f"GPU-{properties.uuid}", memory_bytes, limit_bytes)


def _upcast_outputs(module: torch.nn.Module, args: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Converts every floating-point output of a module to fp32."""
    return {
        name: value.float()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in features.items()
    }
