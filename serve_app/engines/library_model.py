"""Models as sentence-transformers loads and runs them: what every engine is compared with."""

from collections.abc import Mapping, Sequence
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import (
    CrossEncoder,
    MultiVectorEncoder,
    SentenceTransformer,
    SparseEncoder,
)
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
from sentence_transformers.util.tensor import select_max_active_dims

from serve_app.config import ModelConfig
from serve_app.engines.multi_vector_tokenizer import MultiVectorRules, MultiVectorTokenizer
from serve_app.engines.rows import sparse_row
from serve_app.engines.tokenizer import INPUT_TYPES, TextTokenizer
from serve_app.errors import ModelSourceError
from serve_app.inputs import Image, Input, QueryText, TextPair
from serve_app.models import ModelSpec, model_dir
from serve_app.tasks import Task
from serve_app.types import Row

LibraryModel = SentenceTransformer | CrossEncoder | SparseEncoder | MultiVectorEncoder
_CLASSES: Mapping[str, Any] = {
    "dense": SentenceTransformer,
    "cross-encoder": CrossEncoder,
    "sparse": SparseEncoder,
    "multi-vector": MultiVectorEncoder,
}
#: The name of each task's output among the features that the last module returns.
FEATURES: Mapping[Task, str] = {
    "embed": "sentence_embedding",
    "embed_images": "sentence_embedding",
    "embed_tokens": "token_embeddings",
    "embed_sparse": "sentence_embedding",
    "rerank": "scores",
    "classify": "scores",
}


class _MaxActiveDims(torch.nn.Module):
    """Sets all but the largest weights of a sparse vector to zero, as `SparseEncoder.encode`."""

    def __init__(self, max_active_dims: int) -> None:
        super().__init__()
        self._max_active_dims = max_active_dims

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = FEATURES["embed_sparse"]
        features[name] = select_max_active_dims(features[name], self._max_active_dims)
        return features


def load_model(config: ModelConfig, spec: ModelSpec, device: str) -> LibraryModel:
    """Loads a model at fp32, whatever the precision of its files.

    Raises:
        ModelSourceError: a file of weights holds more than weights, which isn't run.
    """
    try:
        model: LibraryModel = _CLASSES[spec.kind](
            str(model_dir(config)),
            device=device,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
        )
    except UnpicklingError as error:
        raise ModelSourceError(
            f"The weights of {config.name} in a `.bin` file are damaged, or hold code, which isn't "
            "run. Use a model with `*.safetensors`."
        ) from error
    if config.max_tokens is not None:
        _limit_tokens(model, config.max_tokens)
    if isinstance(model, SparseEncoder) and model.max_active_dims is not None:
        for module in model:
            if isinstance(module, SparseAutoEncoder):
                module.k = model.max_active_dims
        model.append(_MaxActiveDims(model.max_active_dims))
    # The card refers to the model. Without that cycle, the memory of an unloaded model is free at
    # once, not with the next full garbage collection.
    model.model_card_data.model = None
    return model.float().eval()


def _limit_tokens(model: LibraryModel, max_tokens: int) -> None:
    if isinstance(model[0], StaticEmbedding):
        model[0].tokenizer.enable_truncation(max_tokens)
        return
    model.max_seq_length = max_tokens
    if isinstance(model[0], Transformer) and model[0].document_length is not None:
        model[0].document_length = max_tokens


def loaded_limits(model: LibraryModel, spec: ModelSpec) -> tuple[int, int]:
    """Returns the width of a loaded model's outputs, and its token limit."""
    if isinstance(model, CrossEncoder):
        dim = model.num_labels
    elif isinstance(model, SparseEncoder):
        dim = spec.dim  # some models know it only once they have run
    else:
        dim = int(cast(SentenceTransformer, model).get_embedding_dimension() or 0)
    if spec.is_static:
        return dim, spec.max_tokens  # it has no limit but that of its tokenizer
    limit = getattr(model[0], "document_length", None) or model.max_seq_length
    return dim, int(limit or 0)


def load_tokenizer(model: LibraryModel, spec: ModelSpec) -> TextTokenizer:
    """Returns a tokenizer that encodes the model's inputs as the model does.

    Raises:
        ModelSourceError: the model has no fast tokenizer.
    """
    if spec.is_static:
        return TextTokenizer.from_static(model.tokenizer, spec.max_tokens)
    if spec.kind == "multi-vector":
        rules = _multi_vector_rules(model)
        return MultiVectorTokenizer.from_model(model.tokenizer, spec.max_tokens, rules)
    return TextTokenizer.from_transformers(model.tokenizer, spec.max_tokens, INPUT_TYPES[spec.kind])


def _multi_vector_rules(model: LibraryModel) -> MultiVectorRules:
    transformer: Any = model[0]
    tokenizer: Any = model.tokenizer
    limit = int(transformer.query_length or tokenizer.model_max_length)
    mask = next((module for module in model if isinstance(module, MultiVectorMask)), None)
    skipped: dict[str, Any] = {}
    if mask is not None:
        ids = tokenizer.convert_tokens_to_ids(mask.skiplist_words)
        ids = tuple(
            token_id
            for word, token_id in zip(mask.skiplist_words, ids, strict=True)
            if token_id != tokenizer.unk_token_id or word == tokenizer.unk_token
        )
        skipped = {f"{task}_skipped": ids for task in mask.skiplist_tasks}
        if mask.keep_only_token_ids:
            skipped["document_kept"] = tuple(mask.keep_only_token_ids)
    expansion = transformer.query_expansion
    if expansion is None:
        return MultiVectorRules(limit, **skipped)
    length = expansion["length"]
    if expansion["strategy"] == "fixed":
        limit = length
    elif transformer.query_length:
        limit = max(limit, length)
    token_id = tokenizer.mask_token_id
    if expansion["token"] is not None:
        token_id = tokenizer.convert_tokens_to_ids(expansion["token"])
    elif token_id is None:
        token_id = tokenizer.eos_token_id
    return MultiVectorRules(
        limit,
        expanded_length=length,
        expansion_id=tokenizer.pad_token_id if token_id is None else token_id,
        attends_expansion=expansion["attend"],
        **skipped,
    )


def reference_outputs(model: LibraryModel, task: Task, inputs: Sequence[Input]) -> list[Row]:
    """Returns the outputs of the library itself, a row for each input: of scores the logits."""
    options: dict[str, Any] = {"prompt": "", "show_progress_bar": False}
    if isinstance(model, MultiVectorEncoder):
        return [
            (model.encode_query if isinstance(value, QueryText) else model.encode_document)(
                value.text if isinstance(value, QueryText) else value,
                convert_to_numpy=True,
                **options,
            )
            for value in inputs
        ]
    if isinstance(model, CrossEncoder):
        rows = list[Row]()
        for value in inputs:
            pair = (value.query, value.document) if isinstance(value, TextPair) else value
            scores = model.predict(
                [pair] if isinstance(pair, tuple) else pair,
                activation_fn=torch.nn.Identity(),
                **options,
            )
            rows.append(np.asarray(scores, dtype=np.float32).reshape(-1))
        return rows
    if isinstance(model, SparseEncoder):
        texts: Any = list(inputs)
        vectors: Any = model.encode(texts, convert_to_sparse_tensor=False, **options)
        return [sparse_row(vector) for vector in vectors.cpu().numpy()]
    values: list[Any] = list(inputs)
    if any(isinstance(value, Image) for value in inputs):
        from serve_app.engines.image_tokenizer import decode_image

        values = [decode_image(v) if isinstance(v, Image) else v for v in inputs]
    vectors = cast(SentenceTransformer, model).encode(values, **options)
    return [*np.asarray(vectors, dtype=np.float32)]
