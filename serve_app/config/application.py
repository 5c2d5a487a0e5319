"""Settings of the application, the `args` in the YAML file: a change restarts every replica."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from serve_app.config.alias import AliasConfig, check_aliases
from serve_app.config.cors_origin import CorsOrigin
from serve_app.config.fallback import check_fallbacks, check_one_process
from serve_app.config.model import (
    EMBEDDER,
    MINILM,
    PROVIDERS,
    Device,
    EngineName,
    EngineSettings,
    ModelConfig,
    Precision,
)
from serve_app.config.section import GIB, MIB, Section
from serve_app.config.tracing import TracingConfig
from serve_app.types import CacheDtype

#: The deployment that has a replica only while several machines share an embedded cache server.
CACHE_SERVER = "CacheServer"
#: Names of deployments that hold no models of their own.
_RESERVED_DEPLOYMENTS = ("Ingress", "CacheLookup", "EmbedServer", CACHE_SERVER)


class CacheConfig(Section):
    """The L2 cache, which replicas share, and the format of cached vectors."""

    renamed: ClassVar[Mapping[str, str]] = {"folder": "data_dir", "storage": "dtype"}
    removed: ClassVar[Mapping[str, str]] = {
        "lease_s": "it cost more than it saved. Delete it; replicas share vectors as they do "
        "without it."
    }

    url: SecretStr = Field(
        default=SecretStr("embedded"),
        description="The L2 cache. `embedded`: a Valkey server that the service starts on a "
        "private unix socket; its data survives restarts in the user's cache directory. On a Ray "
        "cluster of several machines all use that of the head, which then opens a port. `none`: no "
        "L2, process memory only. Otherwise the URL of a Redis or Valkey server: "
        "`redis://host:6379/0`, `rediss://…`, `unix:///path`, "
        "`redis+sentinel://host:26379,host2:26379/<service>/0`, `redis+cluster://host:6379`.",
    )
    password_env: str | None = Field(
        default=None,
        description="Name of an environment variable with the server's password. Prefer it to a "
        "password in `url`, which Ray's dashboard shows.",
    )
    data_dir: str | None = Field(
        default=None,
        description="Directory for the embedded server's data. null: the user's cache directory.",
    )
    prefix: str = Field(
        default="embedserve",
        pattern=r"^[\w.-]{1,64}$",
        description="Prefix of all keys on the server. Services with the same prefix share "
        "vectors, quotas, and the totals of costs.",
    )
    max_bytes: int = Field(
        default=256 * MIB,
        ge=MIB,
        le=1024 * GIB,
        description="Memory limit of the embedded server; at the limit it evicts the least "
        "frequently used vectors.",
    )
    ttl_s: int | None = Field(
        default=30 * 24 * 3600,
        ge=1,
        le=10 * 366 * 24 * 3600,
        description="Time to live of a cached vector on the server. null: ten years; a full "
        "server evicts earlier. Cached vectors never become stale: the key includes everything "
        "that determines the vector.",
    )
    timeout_s: float = Field(
        default=0.05,
        gt=0,
        le=10,
        description="Timeout of a cache read; a slower one counts as a miss. After five timeouts "
        "in a row, the service skips the server until it responds again.",
    )
    write_queue_max_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=GIB,
        description="Size limit of the write queue in each process; at the limit, vectors are not "
        "written to the server.",
    )
    dtype: CacheDtype = Field(
        default="float32",
        description="Data type of cached vectors. `float16` halves their size and `int8` quarters "
        "it, with the value range of each component, for models whose ranges are calibrated. Both "
        "round every vector, computed ones included, so each defines a vector space of its own; "
        "`/info` reports what it loses.",
    )
    scores: bool = Field(
        default=False,
        description="Cache the scores of rerankers and classifiers as well, by both texts of a "
        "pair. Enable it if the same queries return to the same documents.",
    )


class AppConfig(Section):
    """The application's `args`: a change restarts every replica."""

    location = "args"

    model: ModelConfig | None = Field(
        default=None,
        description="Short form of `models` with one model, with the same settings. null, and no "
        "`models`: all-MiniLM-L6-v2.",
    )
    models: tuple[ModelConfig, ...] = Field(
        default=(),
        min_length=1,
        description="The models that are served. Their names and aliases must differ.",
    )
    aliases: tuple[AliasConfig, ...] = Field(
        default=(),
        description="Names that clients request in place of a model's, so that another model can "
        "replace it: [migrate.md](migrate.md#replace-a-model).",
    )
    max_loaded_models: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="How many models a replica keeps in memory. At the limit, it unloads the least "
        "recently used one, and loads a model again when a request needs it; the header "
        "`server-timing` reports the time as `load`. null: all models stay in memory.",
    )
    device: Device = Field(
        default="cpu",
        description="Device that runs the models. `cuda` needs `num_gpus` in the "
        "`ray_actor_options` of their deployment. `mps` is the GPU of a Mac, with `torch`; "
        "untested.",
    )
    gpu_memory_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of a GPU's memory that each replica may use, with `device: cuda`. A "
        "batch that doesn't fit is computed in parts. null: `num_gpus` of the deployment's "
        "`ray_actor_options` if that is a fraction, else all that is free.",
    )
    engine: EngineName = Field(
        default="auto",
        description="Inference engine. `torch`: sentence-transformers, on CPUs and GPUs. "
        "`openvino`: CPUs only; replicas load a prepared model, without torch. `hashing`: for a "
        "`hashing:` source. `auto`: the fastest engine with correct vectors, selected when the "
        "application is built; `/info` reports the selection and the engines that were rejected. "
        "An engine that you set is never replaced by another: if it can't be used, startup fails.",
    )
    precision: Precision = Field(
        default="auto",
        description="Arithmetic precision of the model. On CPUs `bf16` needs AVX512-BF16 or "
        "AMX-BF16, and `fp16` needs `torch` with AVX512-FP16 or AMX-FP16: a precision that the CPU "
        "would emulate is rejected at start. `int8` and `int8-fast` run quantized models with "
        "OpenVINO on x86 CPUs with VNNI, for dense models of texts; `auto` never selects them, "
        "because their vectors can't be compared with those of the other precisions. Vector spaces "
        "differ by precision, so set it explicitly on a cluster of different CPUs.",
    )
    prepared_models_max_bytes: int = Field(
        default=10 * GIB,
        ge=0,
        le=1024 * GIB,
        description="Size limit of the prepared models in the user's cache directory. At each "
        "start, the least recently used ones that no process uses are removed. `embedserve models "
        "list` prints them.",
    )
    wake_up_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long requests wait while no replica of their deployment runs: one with "
        "`min_replicas: 0` that has scaled to zero, or whose replicas have failed. Then they get a "
        "503 with `Retry-After`.",
    )
    cache: CacheConfig = Field(default=CacheConfig(), description="The L2 cache.")
    tracing: TracingConfig = Field(
        default=TracingConfig(), description="Traces of requests, off by default."
    )
    cors_origins: tuple[CorsOrigin, ...] = Field(
        default=(),
        description="Origins that may call the service from a browser, such as "
        "`https://app.example`, `https://*.app.example` or `chrome-extension://*`; `*` allows all. "
        "An origin that no browser sends, such as one with a path, stops the start.",
    )
    console: bool = Field(
        default=True,
        description="Serve the page at `/console`, on which people try models and see the load. "
        "The page itself has no data and needs no API key. Its requests for data do.",
    )
    topology: Literal["separate", "colocated"] = Field(
        default="separate",
        description="`separate`: the deployments Ingress, CacheLookup and Embedder, each with its "
        "own replicas, for clusters and GPUs. `colocated`: one deployment, EmbedServer, whose "
        "replicas take requests, look up the cache and run the model in one process: faster on one "
        "machine.",
    )

    @field_validator("topology", mode="before")
    @classmethod
    def _reject_inline(cls, value: object) -> object:
        if value == "inline":
            raise ValueError("`inline` was replaced by `colocated`, see configs/one-machine.yaml.")
        return value

    @property
    def served_models(self) -> tuple[ModelConfig, ...]:
        """The entries of all models that are served, however the file lists them."""
        return self.models or (self.model or MINILM,)

    @property
    def model_deployments(self) -> dict[str, tuple[ModelConfig, ...]]:
        """The models of each deployment that has some, in the order of the file."""
        deployments: dict[str, tuple[ModelConfig, ...]] = {}
        for model in self.served_models:
            deployments[model.deployment] = (*deployments.get(model.deployment, ()), model)
        return deployments

    @property
    def engine_deployments(self) -> tuple[str, ...]:
        """The deployments whose models run on engines."""
        return tuple(name for name, (m, *_) in self.model_deployments.items() if not m.is_remote)

    @property
    def provider_deployments(self) -> tuple[str, ...]:
        """The deployments whose models providers run."""
        return tuple(name for name, (m, *_) in self.model_deployments.items() if m.is_remote)

    def engine_settings(self, model: ModelConfig) -> EngineSettings:
        """Returns the model's engine settings, with those of the application where it has none."""
        return EngineSettings(
            model.device or self.device,
            model.engine or self.engine,
            model.precision or self.precision,
        )

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.model is not None and self.models:
            raise ValueError(
                "`model` is the short form of `models`: move its entry into the list `models`, and "
                "leave out `model`."
            )
        _check_unique(self.served_models)
        if self.topology == "colocated":
            check_one_process(self.served_models, "`topology: colocated`")
        check_fallbacks(self.served_models)
        check_aliases(self.aliases, self.served_models)
        for name, models in self.model_deployments.items():
            self._check_deployment(name, models)
        for model in self.served_models:
            _check_engine(model, self.engine_settings(model))
        return self

    def _check_deployment(self, name: str, models: Sequence[ModelConfig]) -> None:
        if name in _RESERVED_DEPLOYMENTS:
            raise ValueError(
                f"`deployment: {name}` names another deployment of the service. Choose a name of "
                f"its own, such as `deployment: Reranker`, or leave it out for `{EMBEDDER}`."
            )
        _check_kind(name, models)
        if self.topology == "colocated" and name not in (EMBEDDER, PROVIDERS):
            raise ValueError(
                f"With `topology: colocated` each EmbedServer runs all models: leave out "
                f"`deployment: {name}`, or set `topology: separate`."
            )
        devices = {self.engine_settings(model).device for model in models}
        if len(devices) > 1:
            raise ValueError(
                f"The models of the deployment {name} share replicas, and so their device, but "
                f"they have {' and '.join(sorted(devices))}. Give those of one device another "
                "`deployment`."
            )


def _check_kind(deployment: str, models: Sequence[ModelConfig]) -> None:
    """Checks that the models of a deployment run on engines, or that providers run all of them."""
    remote = {model.is_remote for model in models}
    if len(remote) > 1:
        raise ValueError(
            f"The deployment {deployment} has models that providers run, and others. Give those of "
            "one kind another `deployment`, or leave it out."
        )
    own = {EMBEDDER: False, PROVIDERS: True}.get(deployment)
    if own is not None and remote != {own}:
        kind = "providers run" if own else "run on engines"
        raise ValueError(
            f"`deployment: {deployment}` is that of models that {kind}. Leave it out, or name "
            "another one."
        )


def _check_unique(models: Sequence[ModelConfig]) -> None:
    """Checks that no two models have a name, an alias or a default task in common."""
    if name := _first_duplicate(name for m in models for name in {m.name, *m.aliases}):
        raise ValueError(
            f"Two models are called {name!r}. Give each model names and aliases of its own."
        )
    if task := _first_duplicate(task for m in models for task in {*m.default_for}):
        raise ValueError(f"Two models have `{task}` in `default_for`. Leave it in one of them.")


def _first_duplicate(values: Iterable[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _check_engine(model: ModelConfig, settings: EngineSettings) -> None:
    """Checks that the settings of the model's engine can be combined."""
    device, engine, precision = settings
    own = model.parsed_source.engine
    if own == "provider":
        return
    if own is not None and engine not in ("auto", own):
        raise ValueError(
            f"`engine: {engine}` runs models; for `source: {model.source}` leave `engine` out, or "
            f"set `engine: {own}` in the model's entry."
        )
    if own == "hashing":
        if device != "cpu" or precision not in ("auto", "fp32"):
            raise ValueError(
                "`hashing` runs on CPUs, at fp32. Set `device: cpu` and `precision: fp32` in the "
                "model's entry."
            )
        return
    if engine == "hashing":
        raise ValueError(
            "`engine: hashing` runs no model: set `model.source: hashing:384`, or another engine "
            f"for {model.name}."
        )
    if engine == "openvino" and device != "cpu":
        raise ValueError(f"`engine: openvino` runs on CPUs; with `device: {device}` use `torch`.")
    if engine == "openvino" and precision == "fp16":
        raise ValueError("`engine: openvino` has no `fp16`; use `bf16` or `fp32`.")
    if precision.startswith("int8") and (device != "cpu" or engine == "torch"):
        raise ValueError(f"`precision: {precision}` runs with `engine: openvino` on CPUs.")
