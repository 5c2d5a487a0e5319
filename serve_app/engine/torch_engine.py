"""The engine that runs a model through sentence-transformers, on a CPU or a GPU."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from serve_app.config import ModelConfig
from serve_app.engine.base import TokenIds
from serve_app.errors import ModelSourceError, SpaceMismatch
from serve_app.models import ModelSpec, folder
from serve_app.types import EngineInfo, Float32


class TorchEngine:
    """A sentence-transformers pipeline at float32, with tokenising and computing apart."""

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
        self._tokenizer, self._pad_id = _own_tokenizer(self._model.tokenizer, spec.max_tokens)
        self._pads_left = self._model.tokenizer.padding_side == "left"
        self._type_ids = "token_type_ids" in self._model.tokenizer.model_input_names
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
        return [
            TokenIds(encoding.ids, bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch_fast(list(texts))
        ]

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, from one padded run of the pipeline."""
        with torch.inference_mode():
            features = self._model.forward(self._features(batch))
            vectors: Float32 = features["sentence_embedding"].float().cpu().numpy()
        return vectors

    def _features(self, batch: Sequence[TokenIds]) -> dict[str, Any]:
        longest = max(len(tokens.ids) for tokens in batch)
        ids = np.full((len(batch), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            n = len(tokens.ids)
            place = slice(longest - n, longest) if self._pads_left else slice(0, n)
            ids[row, place] = tokens.ids
            mask[row, place] = 1
        features = {"input_ids": ids, "attention_mask": mask}
        if self._type_ids:
            features["token_type_ids"] = np.zeros_like(ids)
        return {name: torch.from_numpy(array).to(self._device) for name, array in features.items()}


def _own_tokenizer(tokenizer: Any, max_tokens: int) -> tuple[Tokenizer, int]:
    """A private copy: padding and truncation are mutable state of a tokenizer object."""
    if not tokenizer.is_fast:
        raise ModelSourceError("The model has no fast tokenizer (`tokenizer.json`).")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.enable_truncation(max_tokens)
    return own, tokenizer.pad_token_id
