"""Models that providers run: texts → calls of their APIs → vectors."""

from importlib import import_module

from serve_app.config import ModelConfig
from serve_app.errors import ConfigurationError
from serve_app.model_spec import ModelSpec
from serve_app.providers.base import Provider
from serve_app.sources import ProviderSource

#: The module and the class of each kind of source, and the extra that installs its library.
_PROVIDERS = {
    "openai": ("openai_provider", "OpenAIProvider", "openai"),
    "azure": ("openai_provider", "OpenAIProvider", "openai"),
    "compatible": ("openai_provider", "OpenAIProvider", "openai"),
    "cohere": ("cohere_provider", "CohereProvider", "cohere"),
    "voyage": ("voyage_provider", "VoyageProvider", "voyage"),
}


def load_provider(model: ModelConfig, spec: ModelSpec) -> Provider:
    """Returns the provider of a model, which opens connections with its first call.

    Client libraries are imported here, when they are needed.

    Args:
        model: the entry of a model that a provider runs.
        spec: its spec.

    Raises:
        ConfigurationError: the client library isn't installed, or there is no API key.
    """
    source = model.parsed_source
    assert isinstance(source, ProviderSource)
    module, name, extra = _PROVIDERS[source.kind]
    try:
        provider_class = getattr(import_module(f"serve_app.providers.{module}"), name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"`source: {model.source}` needs the package {error.name!r}: "
            f"`pip install 'embedserve[{extra}]'`."
        ) from None
    provider: Provider = provider_class(model, spec, source)
    return provider
