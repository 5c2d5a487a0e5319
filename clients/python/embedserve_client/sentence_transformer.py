"""The interface of `SentenceTransformer`, with vectors of the service.

Results have the types, shapes and values of sentence-transformers. Only tensors need torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from embedserve_client.vectors import Vectors

#: Options of `encode` that the service can't honor → what to do instead.
_UNSUPPORTED = {
    "prompt": "Use `prompt_name`, or put the prompt before each text.",
    "output_value": "There is one vector for each text. Token vectors: POST /embed_all.",
    "precision": "Vectors are float32. Quantize them, or request another type over HTTP.",
    "pool": "The service distributes the texts itself.",
    "task": "Use `prompt_name`.",
    "processing_kwargs": "Set the token limit in the configuration of the service.",
}
_SUPPORTED_VALUES = {"output_value": "sentence_embedding", "precision": "float32"}


class SentenceTransformerInterface(ABC):
    """The methods of `SentenceTransformer` that programs call to embed texts."""

    def encode(
        self,
        sentences: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> Any:
        """Replaces `SentenceTransformer.encode`.

        Args:
            sentences: a text, or any sequence of texts; also called `inputs`.
            prompt_name: the name of one of the model's prompts, such as `query`.
            prompt: unsupported.
            batch_size: texts per request; None: the client's.
            show_progress_bar: shows a progress bar on standard error.
            output_value: only `sentence_embedding`.
            precision: only `float32`.
            convert_to_numpy: False: returns a list of tensors.
            convert_to_tensor: returns one tensor.
            device: the device of tensors; the service selects the one that computes.
            normalize_embeddings: scales vectors to unit length.
            truncate_dim: the number of leading dimensions to keep, without normalizing again.
            options: `inputs`, `chunk_size`, and unsupported options.

        Returns:
            float32 of shape (n, dim), or (dim,) for a single text: an array, or tensors.

        Raises:
            ValueError: an option can't be honored.
            TypeError: `encode` has no such option.
            ImportError: tensors are requested, and torch isn't installed.
            EmbedError: the texts can't be embedded.
        """
        inputs = options.pop("inputs", sentences)
        options |= {"prompt": prompt, "output_value": output_value, "precision": precision}
        _reject_unsupported(options, batch_size)
        is_single = isinstance(inputs, str)
        texts = [inputs] if is_single else _as_list(inputs)
        vectors: Any = self._encode(texts, prompt_name, batch_size, bool(show_progress_bar))
        vectors = vectors[..., :truncate_dim]
        if normalize_embeddings:
            norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = Vectors(vectors / np.maximum(norms, 1e-12), vectors.info)
        result = vectors[0] if is_single else vectors
        if convert_to_tensor or not convert_to_numpy:
            tensor = _tensor(result).to(device=None if isinstance(device, list) else device)
            return tensor if convert_to_tensor or is_single else list(tensor)
        return result if result.flags.writeable else result.copy()

    def encode_query(self, sentences: Any = None, **options: Any) -> Any:
        """Replaces `SentenceTransformer.encode_query`: `encode` with the prompt of queries."""
        return self.encode(sentences, **{"prompt_name": "query", **options})

    def encode_document(self, sentences: Any = None, **options: Any) -> Any:
        """Replaces `SentenceTransformer.encode_document`: `encode` with that of documents."""
        return self.encode(sentences, **{"prompt_name": "document", **options})

    def tokenize(self, texts: Sequence[str]) -> dict[str, Any]:
        """Replaces `SentenceTransformer.tokenize`.

        Returns:
            `input_ids` and `attention_mask`, int64 tensors of shape (n, tokens of the longest
            text). Texts are cut at the model's token limit; ids where the mask is 0 are 0.

        Raises:
            ImportError: torch isn't installed.
            EmbedError: the texts can't be tokenized.
        """
        rows = self._token_ids(list(texts))
        ids = np.zeros((len(rows), max(map(len, rows), default=0)), dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return {"input_ids": _tensor(ids), "attention_mask": _tensor(mask)}

    def get_embedding_dimension(self) -> int:
        """Replaces `SentenceTransformer.get_embedding_dimension`.

        Raises:
            EmbedError: the service can't embed.
        """
        return int(self._encode(["dimension"], None, None, False).shape[-1])

    get_sentence_embedding_dimension = get_embedding_dimension

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Returns the cosines of two collections of vectors, a tensor of shape (n1, n2).

        Args:
            embeddings1: shape (n1, dim) or (dim,): an array, a tensor, or a list of either.
            embeddings2: shape (n2, dim) or (dim,).

        Raises:
            ImportError: torch isn't installed.
        """
        left, right = _unit_rows(embeddings1), _unit_rows(embeddings2)
        return left @ right.T

    @abstractmethod
    def _encode(
        self, texts: list[str], prompt_name: str | None, batch_size: int | None, show_progress: bool
    ) -> Vectors:
        """Embeds texts; returns shape (n, dim), or (0,) without texts."""

    @abstractmethod
    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        """Returns the token ids of each text, special tokens included, cut at the token limit."""


def _as_list(inputs: Any) -> list[str]:
    return inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)


def _reject_unsupported(options: dict[str, Any], batch_size: int | None) -> None:
    options.pop("chunk_size", None)  # has no effect without `pool` in sentence-transformers either
    unknown = options.keys() - _UNSUPPORTED.keys()
    if unknown:
        raise TypeError(f"`encode` has no option {min(unknown)!r}.")
    for name, value in options.items():
        if value != _SUPPORTED_VALUES.get(name):
            raise ValueError(f"`{name}={value!r}` isn't supported. {_UNSUPPORTED[name]}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, not {batch_size}.")


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError("Tensors need PyTorch: pip install torch") from error
    return torch


def _tensor(array: Any) -> Any:
    return _import_torch().tensor(np.asarray(array))  # a copy, which the caller may change


def _unit_rows(embeddings: Any) -> Any:
    """Returns vectors as a float tensor of shape (n, dim) with rows of unit length."""
    torch = _import_torch()
    if isinstance(embeddings, list) and all(map(torch.is_tensor, embeddings)):
        embeddings = torch.stack(embeddings)
    tensor = embeddings if torch.is_tensor(embeddings) else _tensor(embeddings)
    rows = torch.atleast_2d(tensor).to(torch.float32)
    return torch.nn.functional.normalize(rows, dim=1)


@contextmanager
def progress_bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Shows a bar of `total` texts on standard error; yields a function that advances it."""
    if not shown:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Texts", total=total)
        yield lambda n: bar.advance(task, n)


def truncate_token_ids(tokens: Sequence[tuple[int, bool]], max_tokens: int) -> list[int]:
    """Returns token ids, cut at a limit as a tokenizer does: the last special tokens are kept.

    Args:
        tokens: the id of each token, and whether the tokenizer added it.
        max_tokens: the limit, special tokens included.
    """
    ids = [token_id for token_id, _ in tokens]
    if len(ids) <= max_tokens:
        return ids
    n_last = next(i for i, (_, special) in enumerate(reversed(tokens)) if not special)
    return ids[: max_tokens - n_last] + ids[len(ids) - n_last :]
