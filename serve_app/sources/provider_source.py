"""Models that providers run: OpenAI, Azure, Cohere, Voyage, and what speaks OpenAI's dialect."""

from collections.abc import Mapping
from dataclasses import dataclass
from re import ASCII, fullmatch
from typing import Any, ClassVar

from embedserve_client.model_files import DEFAULT_PROMPTS, json_digest
from serve_app.errors import ModelSourceError
from serve_app.model_spec import ModelSpec
from serve_app.sources.base import Source, SpecSettings
from serve_app.sources.predefined_models import PredefinedModel, predefined_model

#: The token limit of models that the service has no data of.
_MAX_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class ProviderSource(Source):
    """The name that a provider has for a model."""

    engine: ClassVar[str | None] = "provider"
    has_files: ClassVar[bool] = False

    kind: ClassVar[str]  #: name of the provider
    data_kind: ClassVar[str]  #: prefix of the predefined models that it has
    max_texts: ClassVar[int]  #: of one call
    max_batch_tokens: ClassVar[int]  #: of one call, for models whose data has no other limit
    unit_length: ClassVar[bool]  #: whether the provider documents vectors of length 1
    prompts: ClassVar[Mapping[str, str]] = DEFAULT_PROMPTS
    default_prompt: ClassVar[str | None] = None
    #: What prompts may be, for a provider that gets them as a parameter; (): texts that precede
    #: the input.
    input_types: ClassVar[tuple[str, ...]] = ()
    needs_base_url: ClassVar[bool] = False
    #: Whether `location` names an address's own choice, behind which any model may run.
    is_alias: ClassVar[bool] = False

    def resolve(self) -> "ProviderSource":
        """Returns itself: no files define the model."""
        return self

    def model(self, name: str, model: str | None) -> str:
        """Returns what identifies the model, and with it its vectors.

        Args:
            name: name of the model in requests.
            model: the model that the configuration names for an alias.
        """
        return self.location

    def data(self, name: str, model: str | None) -> PredefinedModel | None:
        """Returns what the provider documents about the model; None: the service doesn't know."""
        return predefined_model(f"{self.data_kind}:{self.model(name, model)}")

    def spec(self, name: str, aliases: tuple[str, ...], settings: SpecSettings) -> ModelSpec:
        """Returns the model's spec. Two addresses of one model have the same space.

        Raises:
            ModelSourceError: nobody says how many dimensions the vectors have.
        """
        data = self.data(name, settings.model)
        dim = settings.dimensions or (data.dimension if data else None)
        if dim is None:
            raise ModelSourceError(
                f"The service has no data of the model {self.location!r}. Set "
                "`provider.dimensions` to the length of its vectors, and `max_tokens`."
            )
        parts: dict[str, Any] = {
            "provider": self.kind,
            "model": self.model(name, settings.model),
            "dimensions": dim,
        }
        if settings.prompts is not None:
            parts["prompts"] = dict(settings.prompts)
        prompts = self.prompts if settings.prompts is None else settings.prompts
        default = self.default_prompt
        return ModelSpec(
            name=name,
            aliases=aliases,
            dim=dim,
            max_tokens=settings.max_tokens or (data.max_tokens if data else _MAX_TOKENS),
            prompts=prompts,
            default_prompt=default if default in prompts else None,
            weights_sha256=None,
            space_id=f"{json_digest(parts)}-fp32",
            created_s=0,
            unit_length=self.unit_length,
            provider=self.kind,
            tasks=("embed",),
        )


@dataclass(frozen=True, slots=True)
class OpenAISource(ProviderSource):
    """A model of OpenAI."""

    description: ClassVar[str] = "`openai:<model>`"
    kind: ClassVar[str] = "openai"
    data_kind: ClassVar[str] = "openai"
    max_texts: ClassVar[int] = 2048
    max_batch_tokens: ClassVar[int] = 300_000
    unit_length: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class AzureSource(OpenAISource):
    """A deployment of a model of OpenAI on Azure."""

    description: ClassVar[str] = "`azure:<deployment>`"
    kind: ClassVar[str] = "azure"
    needs_base_url: ClassVar[bool] = True
    is_alias: ClassVar[bool] = True

    def model(self, name: str, model: str | None) -> str:
        """Returns the model that the deployment runs, else the deployment's name."""
        names = (name, self.location)
        known = (name for name in names if predefined_model(f"{self.data_kind}:{name}"))
        return model or next(known, self.location)

    def __post_init__(self) -> None:
        """Checks the name of the deployment, which is part of a URL.

        Raises:
            ValueError: Azure has no such names.
        """
        if not fullmatch(r"[\w.-]{1,64}", self.location, ASCII):
            raise ValueError(
                "`source: azure:<deployment>` takes up to 64 letters, digits, `-`, `_` and `.`."
            )


@dataclass(frozen=True, slots=True)
class CompatibleSource(ProviderSource):
    """A model of a server that speaks OpenAI's dialect."""

    description: ClassVar[str] = "`compatible:<model>` (a server with OpenAI's API)"
    kind: ClassVar[str] = "compatible"
    data_kind: ClassVar[str] = "compatible"
    max_texts: ClassVar[int] = 2048
    max_batch_tokens: ClassVar[int] = 300_000
    unit_length: ClassVar[bool] = False
    needs_base_url: ClassVar[bool] = True
    is_alias: ClassVar[bool] = True

    def model(self, name: str, model: str | None) -> str:
        """Returns the model that the configuration names, else the server's name for it."""
        return model or self.location


@dataclass(frozen=True, slots=True)
class CohereSource(ProviderSource):
    """A model of Cohere, which must be told what texts are for."""

    description: ClassVar[str] = "`cohere:<model>`"
    kind: ClassVar[str] = "cohere"
    data_kind: ClassVar[str] = "cohere"
    max_texts: ClassVar[int] = 96
    max_batch_tokens: ClassVar[int] = 128_000
    unit_length: ClassVar[bool] = False
    prompts: ClassVar[Mapping[str, str]] = {
        "query": "search_query",
        "document": "search_document",
        "classification": "classification",
        "clustering": "clustering",
    }
    default_prompt: ClassVar[str | None] = "document"
    input_types: ClassVar[tuple[str, ...]] = (*prompts.values(),)


@dataclass(frozen=True, slots=True)
class VoyageSource(ProviderSource):
    """A model of Voyage AI."""

    description: ClassVar[str] = "`voyage:<model>`"
    kind: ClassVar[str] = "voyage"
    data_kind: ClassVar[str] = "voyage"
    max_texts: ClassVar[int] = 1000
    max_batch_tokens: ClassVar[int] = 120_000
    unit_length: ClassVar[bool] = True
    prompts: ClassVar[Mapping[str, str]] = {"query": "query", "document": "document"}
    input_types: ClassVar[tuple[str, ...]] = (*prompts.values(),)
