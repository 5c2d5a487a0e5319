"""The engine that runs a model through sentence-transformers, on a CPU or a GPU."""

from collections.abc import Sequence
from importlib.metadata import version

import torch
from sentence_transformers import SentenceTransformer

from serve_app.config import ModelConfig
from serve_app.engine.base import TokenIds
from serve_app.engine.tokenizer import TextTokenizer
from serve_app.errors import SpaceMismatch
from serve_app.models import ModelSpec, folder
from serve_app.types import EngineInfo, Float32


class TorchEngine:
    """A sentence-transformers pipeline at float32, with tokenising and computing apart."""

    streams = 1

    def __init__(self, config: ModelConfig, spec: ModelSpec, *, device: str, threads: int) -> None:
        """Loads the model from the files `spec` was read from.

        Args:
            config: where the model comes from.
            spec: what the application promised of it.
            device: `cpu` or `cuda`.
            threads: CPU threads for one run of the model.

        Raises:
            SpaceMismatch: the loaded model has another width or token limit than `spec` says.
            ModelSourceError: the model has no fast tokenizer.
        """
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._model = SentenceTransformer(
            str(folder(config)),
            device=device,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
        ).eval()
        if config.max_tokens is not None:
            self._model.max_seq_length = config.max_tokens
        self._tokenizer = TextTokenizer.of(self._model.tokenizer, spec.max_tokens)
        self._info = EngineInfo(
            engine="torch",
            device=torch.cuda.get_device_name(self._device) if device == "cuda" else "cpu",
            precision="fp32",
            threads=threads,
            space_id=spec.space_id,
            versions={
                name: version(name) for name in ("torch", "sentence-transformers", "transformers")
            },
        )
        loaded = (self.dim, self._model.max_seq_length)
        if loaded != (spec.dim, spec.max_tokens):
            raise SpaceMismatch(
                f"The loaded model has (dim, max_tokens) = {loaded}, its files promise "
                f"{(spec.dim, spec.max_tokens)}. Set `model.max_tokens` in the configuration."
            )

    @property
    def info(self) -> EngineInfo:
        """What this engine is and what it runs on."""
        return self._info

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        return int(self._model.get_embedding_dimension() or 0)

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit."""
        return self._tokenizer.tokenize(texts)

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, from one padded run of the pipeline."""
        inputs = self._tokenizer.pad(batch)
        with torch.inference_mode():
            features = self._model.forward(
                {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
            )
            vectors: Float32 = features["sentence_embedding"].float().cpu().numpy()
        return vectors
