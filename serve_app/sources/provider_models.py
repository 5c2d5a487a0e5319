"""What providers document about their embedding models.

Read on 2026-11-28 from:

* https://developers.openai.com/api/reference/resources/embeddings (also in the docstrings of the
  `openai` package, version 3.51)
* https://docs.voyageai.com/reference/embeddings-api, https://docs.voyageai.com/docs/embeddings
* https://docs.cohere.com/docs/cohere-embed, https://docs.cohere.com/reference/embed
"""

from typing import NamedTuple


class ProviderModel(NamedTuple):
    """A model of a provider."""

    dim: int  #: of its vectors, unless another number is asked for
    max_tokens: int  #: of one text
    max_batch_tokens: int | None = None  #: of one call; None: as the provider's other models


OPENAI_MODELS = {
    "text-embedding-3-small": ProviderModel(1536, 8192),
    "text-embedding-3-large": ProviderModel(3072, 8192),
    "text-embedding-ada-002": ProviderModel(1536, 8192),
}
COHERE_MODELS = {
    "embed-v4.0": ProviderModel(1536, 128_000),
    "embed-english-v3.0": ProviderModel(1024, 512),
    "embed-english-light-v3.0": ProviderModel(384, 512),
    "embed-multilingual-v3.0": ProviderModel(1024, 512),
    "embed-multilingual-light-v3.0": ProviderModel(384, 512),
}
VOYAGE_MODELS = {
    "voyage-4-large": ProviderModel(1024, 32_000, 120_000),
    "voyage-4": ProviderModel(1024, 32_000, 320_000),
    "voyage-4-lite": ProviderModel(1024, 32_000, 1_000_000),
    "voyage-3-large": ProviderModel(1024, 32_000, 120_000),
    "voyage-3.5": ProviderModel(1024, 32_000, 320_000),
    "voyage-3.5-lite": ProviderModel(1024, 32_000, 1_000_000),
    "voyage-code-3": ProviderModel(1024, 32_000, 120_000),
    "voyage-finance-2": ProviderModel(1024, 32_000, 120_000),
    "voyage-law-2": ProviderModel(1024, 16_000, 120_000),
}
