"""Settings of access: API keys, what each of them may use, and how much of it."""

from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import Field

from serve_app.config.section import GIB, Section
from serve_app.cost import NANO_USD


class ApiKey(Section):
    """An API key, known by its digest only, with its permissions and limits."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="Name of the key in logs, metrics and quotas. Each key has a different name.",
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 digest of the key. The key itself is stored nowhere. "
        "`embedserve key new` generates both.",
    )
    models: tuple[str, ...] | None = Field(
        default=None,
        description="The models that the key may use, by `model.name`. null: every model.",
    )
    lane: Literal["interactive", "bulk"] | None = Field(
        default=None,
        description="Lane of all requests with this key; it overrides the client's choice. "
        "null: the client chooses.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=GIB,
        description="Request rate limit for each model; more is a 429. The full minute's quota may "
        "be used in one burst. null: no limit.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1024 * GIB,
        description="Token rate limit for each model, cached texts included; more is a 429. The "
        "full minute's quota may be used in one burst. A single request may exceed it when the "
        "quota is full. null: no limit.",
    )
    concurrent_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1024 * GIB,
        description="Tokens in all requests that are in progress for one model; more is a 429. A "
        "single request may exceed it when no other is in progress. null: no limit.",
    )

    max_usd_per_month: Decimal | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        max_digits=19,
        decimal_places=9,
        description="Budget in US dollars for each calendar month (UTC), over all models. Once "
        "it is used up, requests to models with a price are a 429 until the month ends; models "
        "without a price still answer. null: no budget.",
    )

    @property
    def budget_nano_usd(self) -> int | None:
        """The budget for each month in nano-dollars; None: no budget."""
        return None if self.max_usd_per_month is None else int(self.max_usd_per_month * NANO_USD)

    @property
    def is_limited(self) -> bool:
        """Whether the key has a quota."""
        limits = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_tokens)
        return limits != (None, None, None)


class AccessSettings(Section):
    """API keys, and whether the service runs without any."""

    renamed: ClassVar[Mapping[str, str]] = {"open_beyond_loopback": "allow_unauthenticated"}

    keys: tuple[ApiKey, ...] = Field(
        default=(),
        description="API keys, as digests. When at least one key source is configured, every "
        "request needs a key: `Authorization: Bearer <key>` or `x-api-key: <key>`.",
    )
    keys_file: str | None = Field(
        default=None,
        description="A YAML or JSON file with more keys, a list under `keys`. The service reads a "
        "change within two seconds, without a restart. While the file is missing or malformed, its "
        "previous keys stay valid. With an empty list, no client has access.",
    )
    keys_env: str | None = Field(
        default=None,
        description="Name of an environment variable with the same content as `keys_file`.",
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Serve other machines without API keys. When false, the service refuses to "
        "start without a key if `http_options.host` is not a loopback address.",
    )

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self.keys) or self.keys_file is not None or self.keys_env is not None
