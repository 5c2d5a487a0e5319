"""The tasks: what models compute. A model supports one or several of them."""

from typing import Literal

#: `embed`: one vector per text. `embed_images`: one vector per image, in the space of the texts.
#: `embed_tokens`: one vector per token. `embed_sparse`: weights of tokens of the vocabulary.
#: `rerank`: one score per pair of texts. `classify`: one score per label, of a text or a pair.
Task = Literal["embed", "embed_images", "embed_tokens", "embed_sparse", "rerank", "classify"]

#: The library's class that defines the outputs of a model: sentence-transformers'
#: `SentenceTransformer`, `CrossEncoder`, `SparseEncoder` or `MultiVectorEncoder`.
ModelKind = Literal["dense", "cross-encoder", "sparse", "multi-vector"]

#: The tasks whose output rows differ in length.
RAGGED_TASKS: frozenset[Task] = frozenset(("embed_tokens", "embed_sparse"))
