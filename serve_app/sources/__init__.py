"""Sources of models. A new kind of source is one module of this package, and one line here."""

from serve_app.sources.base import ModelParameters, Source, SpecSettings
from serve_app.sources.folder_source import FolderSource
from serve_app.sources.hashing_source import HashingParameters, HashingSource
from serve_app.sources.hub_source import HubSource
from serve_app.sources.package_source import PackageSource
from serve_app.sources.predefined_models import (
    PredefinedModel,
    predefined_model,
    predefined_models,
)
from serve_app.sources.provider_source import (
    AzureSource,
    CohereSource,
    CompatibleSource,
    OpenAISource,
    ProviderSource,
    VoyageSource,
)

#: The kinds of sources, by the prefix of the setting.
SOURCES: dict[str, type[Source]] = {
    "package": PackageSource,
    "path": FolderSource,
    "hub": HubSource,
    "hashing": HashingSource,
    "openai": OpenAISource,
    "azure": AzureSource,
    "cohere": CohereSource,
    "voyage": VoyageSource,
    "compatible": CompatibleSource,
}


def parse_source(text: str, revision: str | None = None) -> Source:
    """Returns the source that `model.source` and `model.revision` describe.

    Raises:
        ValueError: there is no such kind of source, or its location is malformed.
    """
    kind, _, location = text.partition(":")
    if kind not in SOURCES or not location:
        known = ", ".join(f"`{name}:`" for name in SOURCES)
        raise ValueError(f"`source` begins with one of {known}, followed by a location.")
    return SOURCES[kind](location, revision)


__all__ = [
    "SOURCES",
    "AzureSource",
    "CohereSource",
    "CompatibleSource",
    "FolderSource",
    "HashingParameters",
    "HashingSource",
    "HubSource",
    "ModelParameters",
    "OpenAISource",
    "PackageSource",
    "PredefinedModel",
    "ProviderSource",
    "Source",
    "SpecSettings",
    "VoyageSource",
    "parse_source",
    "predefined_model",
    "predefined_models",
]
