"""OpenAI, Azure, and servers that speak OpenAI's dialect, by the package `openai`."""

from collections.abc import Sequence

import openai

from serve_app.config import ModelConfig
from serve_app.model_spec import ModelSpec
from serve_app.providers.api_key import ApiKey
from serve_app.providers.failed_call import FailedCall
from serve_app.providers.http_provider import HttpProvider
from serve_app.providers.openai_tokens import OpenAITokenCounter
from serve_app.providers.reply import Reply, parse_openai_reply
from serve_app.sources import AzureSource, CompatibleSource, ProviderSource
from serve_app.spans import trace_headers

#: Sent to servers that need no key: without one, the library would send that of OpenAI.
_NO_KEY = "none"
_KEY_ENV = {"openai": "OPENAI_API_KEY", "azure": "AZURE_OPENAI_API_KEY", "compatible": None}


class OpenAIProvider(HttpProvider):
    """A model of OpenAI, of an Azure resource, or of a compatible server."""

    library = "openai"

    def __init__(self, config: ModelConfig, spec: ModelSpec, source: ProviderSource) -> None:
        """Creates the client.

        Raises:
            ConfigurationError: there is no API key.
        """
        key = ApiKey(config.provider, _KEY_ENV[source.kind])
        super().__init__(config, spec, source, key)
        self._model = source.location
        if isinstance(source, CompatibleSource):
            self.dimensions = None  # many servers refuse the parameter
        self._client = self._create_client(source)
        known = source.data(config.name, config.provider.model)
        self._counter = OpenAITokenCounter() if known else None

    def _create_client(self, source: ProviderSource) -> openai.AsyncOpenAI:
        base_url, api_version = self.settings.base_url, self.settings.api_version
        if isinstance(source, AzureSource) and base_url is not None:
            base_url = base_url.rstrip("/").removesuffix("/openai/v1")
            if api_version is not None:
                return openai.AsyncAzureOpenAI(
                    azure_endpoint=base_url,
                    azure_deployment=source.location,
                    api_version=api_version,
                    api_key=self._api_key,
                    max_retries=0,
                )
            base_url = f"{base_url}/openai/v1"
        return openai.AsyncOpenAI(base_url=base_url, api_key=self._api_key, max_retries=0)

    async def _api_key(self) -> str:
        """Returns the key; the library asks for it before each call."""
        return self.key.value or _NO_KEY

    async def request(self, texts: Sequence[str], prompt: str, timeout_s: float) -> Reply:
        """Makes one call for vectors in base64."""
        try:
            response = await self._client.embeddings.with_raw_response.create(
                input=[prompt + text for text in texts],
                model=self._model,
                dimensions=openai.omit if self.dimensions is None else self.dimensions,
                encoding_format="base64",
                timeout=timeout_s,
                extra_headers=trace_headers(),
            )
        except openai.APIStatusError as error:
            raise FailedCall(error.status_code, error.response.headers, error.body) from None
        except openai.APITimeoutError:
            raise TimeoutError from None
        except openai.APIConnectionError as error:
            raise ConnectionError(type(error.__cause__).__name__) from None
        return parse_openai_reply(response.content, len(texts))

    def count_tokens(self, texts: Sequence[str], prompt: str) -> list[int] | None:
        """Returns the number of tokens of each text, if tiktoken and its file are installed."""
        if self._counter is None:
            return None
        return self._counter.count([prompt + text for text in texts])

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()
