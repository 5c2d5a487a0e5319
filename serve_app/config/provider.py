"""Settings of a model that a provider runs: key, address, limits."""

from typing import Self

from pydantic import Field, model_validator

from serve_app.config.section import Section


class ProviderSettings(Section):
    """How the service calls a provider such as OpenAI, for one model."""

    api_key_env: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the environment variable with the provider's API key. null: the "
        "variable that the provider's own client reads: `OPENAI_API_KEY`, `AZURE_OPENAI_API_KEY`, "
        "`CO_API_KEY` or `VOYAGE_API_KEY`. A `compatible:` server gets a key only if this or "
        "`api_key_file` is set.",
    )
    api_key_file: str | None = Field(
        default=None,
        min_length=1,
        description="A file with the API key, such as a mounted secret, in place of `api_key_env`. "
        "It is read again when the provider refuses the key.",
    )
    base_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        description="Address of the API, such as `https://gateway.example/v1`. `azure:` sources "
        "need that of the resource, `https://<resource>.openai.azure.com`; `compatible:` sources "
        "need one too. null: the provider's own.",
    )
    api_version: str | None = Field(
        default=None,
        pattern=r"^[\w.-]{1,64}$",
        description="Version of Azure's API, such as `2024-10-21`. Other providers have none. "
        "null: version 1 (`/openai/v1`), which has no dates.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="The model behind an `azure:` deployment or a `compatible:` address, such as "
        "`text-embedding-3-small`. Entries with the same provider, model and dimensions have one "
        "vector space. null: the entry's `name` or the deployment's name if OpenAI has such a "
        "model, else the name in `source`.",
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Dimensions of the vectors that the provider is asked for; a `compatible:` "
        "server isn't asked, and must return as many. null: all that the model has. A model that "
        "the service has no data of needs it.",
    )
    max_batch_texts: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Most texts in one call. null: the provider's limit.",
    )
    max_batch_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Most tokens in one call, as estimated. null: the provider's limit.",
    )
    max_concurrent_calls: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="Calls of this model that one replica has in flight; further texts are queued.",
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Time limit of one call; the deadline of the request may end it earlier.",
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="How often a call is repeated after a timeout, a lost connection, a 429 or a "
        "5xx, within the deadline of the request.",
    )

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("`api_key_env` and `api_key_file` exclude each other: keep one.")
        return self
