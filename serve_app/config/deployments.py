"""The `user_config` of each deployment: a change reaches running replicas."""

from typing import Literal

from pydantic import Field

from serve_app.config.access import AccessSettings
from serve_app.config.section import GIB, MIB, Section


class IngressSettings(Section):
    """`user_config` of the deployment `Ingress`."""

    max_texts_per_request: int = Field(
        default=2048, ge=1, le=65536, description="Texts in one request; more is a 400."
    )
    max_text_chars: int = Field(
        default=262_144,
        ge=1,
        le=64 * MIB,
        description="Characters in one text, or token ids; more is a 400. A text is read whole, "
        "also where the model then takes only its beginning.",
    )
    token_ids: Literal["model", "cl100k_base", "o200k_base"] = Field(
        default="model",
        description="What token ids in place of a text are. `model`: the model's own, used as they "
        "are. Else OpenAI's, as LangChain sends them by default: turned back into the text, which "
        "needs the package `tiktoken`.",
    )
    max_body_bytes: int = Field(
        default=8 * MIB,
        ge=1024,
        le=GIB,
        description="Size of a request body; more is a 413 that is sent before the rest is read.",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, le=3600, description="Time a client has to send its body; then 408."
    )
    max_concurrent_requests: int = Field(
        default=1024,
        ge=1,
        le=4096,
        description="Embedding requests in progress in one replica; one more is a 429 at once.",
    )
    request_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="Time from body to vectors; then 504."
    )
    interactive_max_texts: int = Field(
        default=8,
        ge=0,
        le=4096,
        description="Requests of so many texts are interactive and go before all others, unless "
        "the header `x-priority` says `bulk` or `interactive`.",
    )
    l1_max_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Memory for vectors in one replica, answered without asking another process; "
        "0: none.",
    )
    max_in_flight_calls: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Calls to the next tier that are in flight before interactive requests wait "
        "for one of them and leave together. A full call (64 requests) never waits.",
    )
    health_max_age_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Age of the last computed vector up to which `/health` asks for no new one.",
    )
    health_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="How long `/health` waits for the vector it tries for.",
    )
    access: AccessSettings = Field(
        default=AccessSettings(), description="API keys, and what each may use."
    )


class CacheLookupSettings(Section):
    """`user_config` of the deployment `CacheLookup`."""

    l1_max_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Memory for vectors in one replica, its own bookkeeping counted; 0: none. "
        "One MiniLM vector takes about 2 KiB.",
    )
    max_in_flight_calls: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="As the Ingress' `max_in_flight_calls`, for calls to Embedders.",
    )


class EmbedderSettings(Section):
    """`user_config` of the deployment `Embedder`."""

    max_batch_tokens: int = Field(
        default=8192,
        ge=64,
        le=16 * MIB,
        description="The most padded tokens in one model batch. A longer single text runs alone.",
    )
    batch_target_s: float = Field(
        default=0.02,
        gt=0,
        le=60,
        description="How long one model batch should take, which is what an interactive text may "
        "have to wait for; batches grow until they do, inside `max_batch_tokens`.",
    )
    max_batch_texts: int = Field(default=64, ge=1, le=4096, description="Texts in one model batch.")
    bulk_promotion_after_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Bulk texts that waited longer take turns with interactive ones.",
    )
    batch_lookahead_texts: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Waiting texts, oldest first, that are searched for ones of similar length.",
    )
    max_request_tokens: int = Field(
        default=MIB,
        ge=64,
        le=GIB,
        description="Tokens in the texts of one request that are to be computed; more is a 400.",
    )
    max_queued_tokens: int = Field(
        default=262_144,
        ge=64,
        le=GIB,
        description="Tokens waiting in one replica; a request that doesn't fit whole is a 429, "
        "unless nothing else waits.",
    )
    stall_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="A model batch that runs longer marks the replica as ill, and Ray replaces it.",
    )
