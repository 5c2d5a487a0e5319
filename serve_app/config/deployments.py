"""Settings of each deployment, its `user_config` in the YAML file: replicas apply a change live."""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import ClassVar, Literal

from pydantic import Field

from serve_app.config.access import AccessSettings
from serve_app.config.image_host import ImageHost
from serve_app.config.section import GIB, MIB, Section
from serve_app.types import Lane

#: Former field names that Ingress and CacheLookup have in common.
_RENAMED_CACHE = {"memory_max_bytes": "l1_max_bytes", "max_calls": "max_in_flight_calls"}
_SPLIT_MAX_TEXTS = 8192

#: Eviction policies of L1; see `cache.eviction`.
EvictionName = Literal["s3-fifo", "lru", "lfu"]


class RequestSettings(Section):
    """Settings of a process that takes requests."""

    max_texts_per_request: int = Field(
        default=2048,
        ge=1,
        le=65536,
        description="Maximum number of texts in a request; more is a 400.",
    )
    split_max_texts: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Maximum number of texts in `POST /embed/batch`, which the service computes in "
        "parts of `batch_size` or `max_texts_per_request` texts; more is a 422. null: 8192, or "
        "`max_texts_per_request` if that is set.",
    )
    max_text_chars: int = Field(
        default=262_144,
        ge=1,
        le=64 * MIB,
        description="Maximum length of a text in characters, or in token ids; more is a 400. The "
        "tokenizer reads the entire text, even if the model then truncates it.",
    )
    max_image_bytes: int = Field(
        default=5 * MIB,
        ge=1,
        le=GIB,
        description="Maximum size of an image file; more is a 400. Base64 in the request's body is "
        "a third larger, and counts toward `max_body_bytes`.",
    )
    max_image_pixels: int = Field(
        default=16 * MIB,
        ge=1,
        le=1024 * MIB,
        description="Maximum number of pixels of an image, read from its header before it is "
        "decoded; more is a 400.",
    )
    allow_image_urls: tuple[ImageHost, ...] = Field(
        default=(),
        description="Hosts from which images are fetched when a request gives a URL in place of a "
        "data URI: `images.example.com`, or `*.example.com` for all names below. The ports are 80 "
        "and 443, or the one that the host names: `minio:9000`. Their addresses must be public, or "
        "in `image_url_networks`; an address named here, such as `10.0.0.7`, may be private. "
        "Redirects lead to these hosts only. `max_body_bytes` limits the images of a request "
        "together. Empty: URLs are a 400.",
    )
    image_url_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Private networks in which the hosts of `allow_image_urls` may have their "
        "addresses, such as `10.96.0.0/12`.",
    )
    image_url_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="Time limit to fetch one image, redirects included; more is a 400.",
    )
    max_image_fetches: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Images fetched at the same time for one model in one replica. Others wait. "
        "One request has up to half of them.",
    )
    max_reply_tokens: int = Field(
        default=65_536,
        ge=1,
        le=16 * MIB,
        description="Maximum number of tokens in one request to tokenize or decode; more is a 400. "
        "A token takes up to 70 bytes in the reply.",
    )
    invalid_text: Literal["error", "replace"] = Field(
        default="error",
        description="Texts with a NUL character or an unpaired surrogate. `error`: a 400 that "
        "names the text and the character. `replace`: U+FFFD replaces each such character, and the "
        "header `x-replaced-inputs` lists the indices of these texts.",
    )
    token_ids: Literal["model", "cl100k_base", "o200k_base"] = Field(
        default="model",
        description="Encoding of token ids that clients send in place of a text. `model`: the ids "
        "of the served model. Otherwise an encoding of OpenAI's models, which LangChain sends by "
        "default: the service decodes the ids to text, with the package `tiktoken`.",
    )
    max_body_bytes: int = Field(
        default=8 * MIB,
        ge=1024,
        le=GIB,
        description="Maximum size of a request body, packed and unpacked (`Content-Encoding`); "
        "more is a 413.",
    )
    body_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Time limit for a client to send its body; more is a 408.",
    )
    compress_min_bytes: int = Field(
        default=8192,
        ge=0,
        le=GIB,
        description="Size from which replies are compressed, if the client's `Accept-Encoding` "
        "lists `zstd` or `gzip`. Raw vectors never are, and base64 is with `zstd` only. "
        "0 disables it: on links faster than 600 Mbit/s gzip takes longer than it saves.",
    )
    max_concurrent_requests: int = Field(
        default=1024,
        ge=1,
        le=4096,
        description="Embedding requests in progress in one replica; more is a 429, without delay.",
    )
    request_timeout_s: float = Field(
        default=120.0,
        gt=0,
        le=3600,
        description="Time limit from the received body to the vectors; more is a 504.",
    )
    interactive_max_texts: int = Field(
        default=8,
        ge=0,
        le=4096,
        description="A request with up to this many texts is interactive and has priority over "
        "bulk requests. The header `x-priority: interactive` or `bulk` overrides it.",
    )
    l1_max_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Size of the in-memory cache of each replica, which saves the call to another "
        "process. 0 disables it.",
    )
    l1_eviction: EvictionName = Field(
        default="s3-fifo",
        description="Which values leave the in-memory cache when it is full. `s3-fifo`: those that "
        "are not read again soon after they were written, so that texts that occur once, such as a "
        "corpus, displace no others. `lru`: the least recently used ones. `lfu`: the least often "
        "read ones; what was popular once remains.",
    )
    health_max_age_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="`/health` reports healthy without a probe while the last computed vector is "
        "not older than this.",
    )
    health_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Timeout of the probe that `/health` sends to the engine.",
    )
    health_reports_cache: bool = Field(
        default=True,
        description="`/health` reports `degraded` while the shared cache is unavailable. false: it "
        "reports `ok`, for clients that take any other status for a failure; `cache.state` and "
        "the metrics tell in either case.",
    )
    request_log: bool = Field(
        default=False,
        description="Log each request: method, path, status, milliseconds, number of texts and "
        "tokens, texts served from the cache, model, name of the key, request id. Never a text or "
        "a key. Health checks are left out.",
    )
    tei_metrics: bool = Field(
        default=False,
        description="`/metrics` also has the metrics under the names of Hugging Face's "
        "text-embeddings-inference, such as `te_request_duration`, for boards and autoscalers that "
        "read those.",
    )
    access: AccessSettings = Field(
        default=AccessSettings(), description="API keys and their permissions."
    )

    def default_lane(self, text_count: int) -> Lane:
        """Returns the lane of a request with this number of inputs that names none."""
        return "interactive" if text_count <= self.interactive_max_texts else "bulk"

    def max_texts(self, *, is_split: bool) -> int:
        """Returns the maximum number of texts in a request.

        Args:
            is_split: whether the service computes the request's texts in parts.
        """
        if not is_split:
            return self.max_texts_per_request
        if self.split_max_texts is not None:
            return self.split_max_texts
        # A limit that an operator has set holds for every request.
        is_set = "max_texts_per_request" in self.model_fields_set
        return self.max_texts_per_request if is_set else _SPLIT_MAX_TEXTS


class IngressSettings(RequestSettings):
    """`user_config` of the deployment `Ingress`."""

    location = "Ingress: user_config"
    renamed: ClassVar[Mapping[str, str]] = _RENAMED_CACHE

    max_in_flight_calls: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Calls to the next tier in flight from one replica, for each replica that "
        "runs models. At the limit, interactive requests wait and are sent together in the next "
        "call. A full call (64 requests) is sent at once.",
    )


class CacheLookupSettings(Section):
    """`user_config` of the deployment `CacheLookup`."""

    location = "CacheLookup: user_config"
    renamed: ClassVar[Mapping[str, str]] = _RENAMED_CACHE

    l1_max_bytes: int = Field(
        default=0,
        ge=0,
        le=1024 * GIB,
        description="Size of the in-memory cache of each replica, overhead included. One MiniLM "
        "vector takes about 2 KiB. 0 disables it: with a server right behind, it rarely hits what "
        "an Ingress misses.",
    )
    l1_eviction: EvictionName = Field(
        default="s3-fifo",
        description="Which values leave the in-memory cache when it is full, like the Ingress' "
        "setting.",
    )
    max_in_flight_calls: int = Field(
        default=4,
        ge=1,
        le=1024,
        description="Calls to Embedders in flight from one replica, like the Ingress' setting.",
    )


class QueueSettings(Section):
    """Settings of a process with queues of texts."""

    bulk_promotion_after_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="A bulk text that has waited this long alternates with interactive ones, so "
        "that bulk work never starves.",
    )
    max_request_tokens: int = Field(
        default=MIB,
        ge=64,
        le=GIB,
        description="Maximum number of tokens to compute for one request; more is a 400.",
    )
    max_queued_tokens: int = Field(
        default=262_144,
        ge=64,
        le=GIB,
        description="Queue limit of each lane of a replica, in tokens. A request that doesn't fit "
        "completely is a 429. One with more than an eighth of the limit is queued in parts, after "
        "earlier ones of that size, while these have less than the limit left.",
    )


class EmbedderSettings(QueueSettings):
    """`user_config` of the deployment `Embedder`."""

    location = "Embedder: user_config"
    renamed: ClassVar[Mapping[str, str]] = {
        "budget_tokens": "max_batch_tokens",
        "lookahead_texts": "batch_lookahead_texts",
        "bulk_max_wait_s": "bulk_promotion_after_s",
    }

    max_batch_tokens: int = Field(
        default=8192,
        ge=64,
        le=16 * MIB,
        description="Maximum number of tokens in one model batch, padding included. A longer text "
        "runs in a batch of its own. Raise it for GPUs.",
    )
    batch_target_s: float = Field(
        default=0.02,
        gt=0,
        le=60,
        description="Target duration of one model batch while interactive texts arrive. The batch "
        "size adapts to it, up to `max_batch_tokens`. An interactive text waits up to this long "
        "for the running batch, so lower it for latency and raise it for throughput. A backlog of "
        "interactive texts, and bulk texts alone, are computed in batches of 2.5 times the target.",
    )
    max_batch_texts: int = Field(
        default=64, ge=1, le=4096, description="Maximum number of texts in one model batch."
    )
    batch_lookahead_texts: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Number of queued texts, oldest first, from which a batch selects texts of "
        "similar length. A larger window means less padding.",
    )
    stall_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Time limit of one model batch. A replica that exceeds it becomes unhealthy, "
        "and Ray replaces it. A standalone service ends with status 1.",
    )


class EmbedServerSettings(RequestSettings, EmbedderSettings):
    """`user_config` of the deployment `EmbedServer`, which does the work of the others."""

    location = "EmbedServer: user_config"
    removed: ClassVar[Mapping[str, str]] = {
        "max_in_flight_calls": "an EmbedServer makes no calls to other deployments. Delete it."
    }


class ProvidersSettings(QueueSettings):
    """`user_config` of the deployment `Providers`, which calls the providers of models."""

    location = "Providers: user_config"

    max_queued_tokens: int = Field(
        default=4 * MIB,
        ge=64,
        le=GIB,
        description="Queue limit of each model and lane, in tokens that wait for a call. A request "
        "that doesn't fit completely is a 429. One that exceeds both an eighth of the limit and "
        "one call is queued in parts, after earlier ones of that size, while these have less than "
        "the limit left.",
    )
