"""Cohere's `meta`, which every reply has."""

import math
from typing import TypedDict

from serve_app.results import ScoreResult

#: Cohere bills one search unit for a query with up to this many documents.
_DOCUMENTS_PER_SEARCH_UNIT = 100


class ApiVersion(TypedDict):
    """The version of Cohere's API."""

    version: str


class Meta(TypedDict):
    """What every reply has."""

    api_version: ApiVersion


META: Meta = {"api_version": {"version": "2"}}


class SearchUnits(TypedDict):
    """What Cohere bills: a unit is a query with up to 100 documents."""

    search_units: int


class InputTokens(TypedDict):
    """Tokens of all pairs."""

    input_tokens: int


class RerankMeta(Meta):
    """`Meta` with what a reranking is billed for, and its tokens."""

    billed_units: SearchUnits
    tokens: InputTokens
    cached_tokens: int


def rerank_meta(result: ScoreResult, api_version: str) -> RerankMeta:
    """Returns the `meta` of a reranking."""
    units = math.ceil(len(result.logits) / _DOCUMENTS_PER_SEARCH_UNIT)
    return {
        "api_version": {"version": api_version},
        "billed_units": {"search_units": units},
        "tokens": {"input_tokens": result.total_tokens},
        "cached_tokens": result.cached_tokens,
    }
