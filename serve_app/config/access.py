"""Who may use the service, and how much of it."""

from typing import Literal

from pydantic import Field

from serve_app.config.section import GIB, Section


class ApiKey(Section):
    """One client's key, of which only the digest is known, and what it may do."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="What logs, metrics and quotas call the key; no two have the same.",
    )
    sha256: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of the key, which itself is kept nowhere; `embedserve key new` makes "
        "both.",
    )
    models: tuple[str, ...] | None = Field(
        default=None, description="`model.name` of those that it may use; null: all."
    )
    lane: Literal["interactive", "bulk"] | None = Field(
        default=None,
        description="The lane of its requests, whatever the client says; null: the client says.",
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=GIB,
        description="Requests that it may send; a minute's worth may come at once. null: no limit.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=1024 * GIB,
        description="Tokens that it may have embedded, cached ones too; a minute's worth may come "
        "at once, and a request of more than that when none was used for long. null: no limit.",
    )
    concurrent_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1024 * GIB,
        description="Tokens in its requests that are being answered; a larger request passes when "
        "it is the only one. null: no limit.",
    )

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to count."""
        limits = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_tokens)
        return limits != (None, None, None)


class AccessSettings(Section):
    """Keys that clients must send, and what happens where there is none."""

    keys: tuple[ApiKey, ...] = Field(
        default=(),
        description="API keys, as digests. Where there are keys, every request needs one: "
        "`Authorization: Bearer <key>` or `x-api-key: <key>`.",
    )
    keys_file: str | None = Field(
        default=None,
        description="A YAML or JSON file with more of them, a list under `keys`. A change of it is "
        "seen within two seconds, without a restart; while it can't be read, or is broken, what it "
        "said before stays. One that lists no key lets nobody in.",
    )
    keys_env: str | None = Field(
        default=None,
        description="Name of an environment variable with the same content as such a file.",
    )
    allow_unauthenticated: bool = Field(
        default=False,
        description="Serve other machines even without any key. Else the service doesn't start "
        "without one where `http_options.host` lets others in.",
    )

    @property
    def required(self) -> bool:
        """Whether requests need a key."""
        return bool(self.keys) or self.keys_file is not None or self.keys_env is not None
