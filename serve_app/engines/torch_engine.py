"""The engine that runs a model through sentence-transformers, on a CPU or a GPU."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from serve_app.config import ModelConfig
from serve_app.engines.base import TokenIds
from serve_app.engines.parity import GATES, canary_texts, parity, passes_gate
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.errors import ConfigurationError, ParityFailed, SpaceMismatch
from serve_app.models import ModelSpec, model_dir
from serve_app.types import EngineInfo, Float32, Input, Parity, Tokenization

#: While one thread's batch computes, another pads the next one and copies it to the GPU.
_STREAMS = {"cpu": 1, "cuda": 2}


class TorchEngine:
    """A sentence-transformers pipeline, with tokenising and computing apart."""

    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        *,
        device: str,
        threads: int,
        precision: str = "fp32",
    ) -> None:
        """Loads the model from the files `spec` was read from.

        Args:
            config: where the model comes from.
            spec: what the application promised of it.
            device: `cpu` or `cuda`.
            threads: CPU threads for one run of the model.
            precision: `fp32`, `bf16` or `fp16`; vectors are float32 whatever it is.

        Raises:
            SpaceMismatch: the loaded model has another width or token limit than `spec` says.
            ModelSourceError: the model has no fast tokenizer.
            ParityFailed: at this precision the vectors are too far from those at float32.
            ConfigurationError: PyTorch can't reach the GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigurationError(
                "PyTorch sees no GPU here: install its build with CUDA, and a driver for it."
            )
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._own = threading.local()  # each thread's CUDA stream
        self.streams = _STREAMS[device]
        self._model = load_pipeline(config, device)
        self._tokenizer = TextTokenizer.of(self._model.tokenizer, spec.max_tokens)
        self._bf16 = False
        loaded = (self.dim, self._model.max_seq_length)
        if loaded != (spec.dim, spec.max_tokens):
            raise SpaceMismatch(
                f"The loaded model has (dim, max_tokens) = {loaded}, its files promise "
                f"{(spec.dim, spec.max_tokens)}. Set `model.max_tokens` in the configuration."
            )
        self._info = EngineInfo(
            engine="torch",
            device=torch.cuda.get_device_name(self._device) if device == "cuda" else "cpu",
            precision=precision,
            threads=threads,
            space_id=spec.space_id,
            versions={
                name: version(name) for name in ("torch", "sentence-transformers", "transformers")
            },
            parity=None if precision == "fp32" else self._lower(precision, spec),
        )

    @property
    def info(self) -> EngineInfo:
        """What this engine is and what it runs on."""
        return self._info

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        return int(self._model.get_embedding_dimension() or 0)

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit.

        Raises:
            InvalidRequest: token ids among them are not the model's own.
        """
        return self._tokenizer.tokenize(texts)

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Tokenization]:
        """How texts are spelled, not cut; `special`: with special tokens around them."""
        return self._tokenizer.spell(texts, special=special)

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """The texts that rows of token ids stand for.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        return self._tokenizer.decode(rows, skip_special=skip_special)

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, from one padded run of the pipeline.

        Raises:
            MemoryError: the batch doesn't fit into the GPU's memory.
        """
        return self._run(batch, "sentence_embedding")

    def embed_tokens(self, batch: Sequence[TokenIds]) -> list[Float32]:
        """Of each text the vectors of its tokens, shape (tokens, width), float32, before pooling.

        Raises:
            MemoryError: the batch doesn't fit into the GPU's memory.
        """
        return self._tokenizer.unpad(self._run(batch, "token_embeddings"), batch)

    def _run(self, batch: Sequence[TokenIds], feature: str) -> Float32:
        inputs = self._tokenizer.pad(batch)
        try:
            return self._forward(inputs, feature)
        except torch.OutOfMemoryError as error:
            error.with_traceback(None)  # its frames hold what filled the memory
            torch.cuda.empty_cache()
            raise MemoryError(f"A batch of {len(batch)} texts doesn't fit on the GPU.") from error

    def _forward(self, inputs: Mapping[str, NDArray[np.int64]], feature: str) -> Float32:
        lower = torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
        with torch.inference_mode(), self._stream(), lower:
            features = self._model.forward({k: self._moved(v) for k, v in inputs.items()})
            # To the CPU means: when this stream is done with it.
            vectors: Float32 = features[feature].float().cpu().numpy()
        return vectors

    def _moved(self, array: NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """A CUDA stream of the calling thread's own, so that threads don't wait for each other."""
        if self._device.type == "cpu":
            yield
            return
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            # The model was loaded on the default stream, and may be on its way still.
            self._own.stream.wait_stream(torch.cuda.default_stream(self._device))
        with torch.cuda.stream(self._own.stream):
            yield

    def _lower(self, precision: str, spec: ModelSpec) -> Parity:
        """Goes down from float32, and measures what that does to the vectors.

        fp16 converts the transformer; pooling and what follows it stay at float32, where long
        sums belong. bf16 is too coarse for that: only products of matrices are computed in it.
        """
        texts = canary_texts(spec.max_tokens)
        expected: Float32 = np.asarray(self._model.encode(texts, prompt=""), dtype=np.float32)
        self._bf16 = precision == "bf16"
        if precision == "fp16":
            self._model[0].half().register_forward_hook(_widen)
        found = parity(self, texts, expected, precision)
        if not passes_gate(found):
            raise ParityFailed(
                f"With torch at {precision} the vectors of {spec.name} are only within cosine "
                f"{found.cosine_min:.6f} of those at fp32; {GATES[precision]} is asked. "
                "Set `precision: fp32`."
            )
        return found


def load_pipeline(config: ModelConfig, device: str) -> SentenceTransformer:
    """The model at float32, at whatever precision its files were saved."""
    model = SentenceTransformer(
        str(model_dir(config)),
        device=device,
        trust_remote_code=config.trust_remote_code,
        local_files_only=True,
    )
    if config.max_tokens is not None:
        model.max_seq_length = config.max_tokens
    return model.float().eval()


def _widen(module: torch.nn.Module, given: Any, features: dict[str, Any]) -> dict[str, Any]:
    """The features with every array of floats at float32."""
    return {
        name: value.float()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in features.items()
    }
