"""The tokenizer of a multi-vector model (ColBERT), which encodes queries and documents differently.

As sentence-transformers does: queries and documents have limits of their own; a short query is
expanded with mask tokens, which get vectors; the vectors of some tokens, such as punctuation, are
left out of a document.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from tokenizers import Tokenizer

from serve_app.engines.base import TokenIds
from serve_app.engines.tokenizer import INPUT_TYPES, Padding, TextTokenizer
from serve_app.inputs import Input, QueryText

_RULES = "multi_vector.json"


@dataclass(frozen=True, slots=True)
class MultiVectorRules:
    """How a model encodes queries and documents."""

    query_max_tokens: int
    expanded_length: int = 0  #: number of tokens that shorter queries are expanded to
    expansion_id: int = 0  #: the token that queries are expanded with
    attends_expansion: bool = False  #: whether the other tokens attend to expansion tokens
    query_skipped: tuple[int, ...] = ()  #: tokens of queries that get no vectors
    document_skipped: tuple[int, ...] = ()  #: tokens of documents that get no vectors
    document_kept: tuple[int, ...] | None = None  #: the only tokens that get vectors; None: all


class MultiVectorTokenizer(TextTokenizer):
    """Encodes `QueryText` as queries, and texts as documents."""

    def __init__(self, tokenizer: Tokenizer, padding: Padding, rules: MultiVectorRules) -> None:
        """Wraps a tokenizer that truncates to the limit of documents."""
        super().__init__(tokenizer, padding, INPUT_TYPES["multi-vector"])
        self._rules = rules
        queries = Tokenizer.from_str(tokenizer.to_str())
        queries.enable_truncation(rules.query_max_tokens)
        self._queries = TextTokenizer(queries, padding)
        self._query_skipped = frozenset(rules.query_skipped)
        self._document_skipped = frozenset(rules.document_skipped)

    @classmethod
    def from_model(cls, tokenizer: Any, max_tokens: int, rules: MultiVectorRules) -> Self:
        """Copies a tokenizer of the transformers library.

        Raises:
            ModelSourceError: it isn't a fast tokenizer.
        """
        base = TextTokenizer.from_transformers(tokenizer, max_tokens)
        return cls(base.backend, base.padding, rules)

    @classmethod
    def load(cls, folder: Path, accepts: tuple[type, ...] = ()) -> Self:
        """Reads a tokenizer that `save` wrote."""
        base = TextTokenizer.load(folder)
        fields = orjson.loads((folder / _RULES).read_bytes())
        lists = {name: tuple(v) for name, v in fields.items() if isinstance(v, list)}
        return cls(base.backend, base.padding, MultiVectorRules(**fields | lists))

    def save(self, folder: Path) -> None:
        """Writes the tokenizer with its rules into a folder."""
        TextTokenizer.save(self, folder)
        (folder / _RULES).write_bytes(orjson.dumps(asdict(self._rules)))

    def encode(self, inputs: Sequence[Input]) -> list[TokenIds]:
        """Returns each input as token ids with special tokens, truncated to its limit.

        Raises:
            InvalidRequest: see `TextTokenizer.encode`.
        """
        documents = super().encode([i for i in inputs if not isinstance(i, QueryText)])
        queries = self._queries.encode([i.text for i in inputs if isinstance(i, QueryText)])
        encoded_documents = map(self._document, documents)
        encoded_queries = map(self._query, queries)
        return [
            next(encoded_queries if isinstance(value, QueryText) else encoded_documents)
            for value in inputs
        ]

    def _document(self, row: TokenIds) -> TokenIds:
        allowed = self._rules.document_kept
        kept = [
            i
            for i, token_id in enumerate(row.ids)
            if token_id not in self._document_skipped and (not allowed or token_id in allowed)
        ]
        return row if len(kept) == len(row.ids) else row._replace(kept=kept)

    def _query(self, row: TokenIds) -> TokenIds:
        missing = max(0, self._rules.expanded_length - len(row.ids))
        expansion = [self._rules.expansion_id] * missing
        ids = expansion + row.ids if self.padding.left else row.ids + expansion
        attended = None
        if missing and not self._rules.attends_expansion:
            own, added = [1] * len(row.ids), [0] * missing
            attended = added + own if self.padding.left else own + added
        kept = None
        if self._query_skipped.intersection(ids):
            kept = [i for i, token_id in enumerate(ids) if token_id not in self._query_skipped]
        return TokenIds(ids, row.truncated, attended=attended, kept=kept)
