"""Cohere, by the package `cohere`."""

from collections.abc import Sequence

import cohere
import httpx
from cohere.core.api_error import ApiError

from serve_app.config import ModelConfig
from serve_app.model_spec import ModelSpec
from serve_app.providers.api_key import ApiKey
from serve_app.providers.failed_call import FailedCall
from serve_app.providers.http_provider import HttpProvider
from serve_app.providers.reply import MalformedReply, Reply
from serve_app.sources import ProviderSource
from serve_app.spans import trace_headers


class CohereProvider(HttpProvider):
    """A model of Cohere."""

    library = "cohere"

    def __init__(self, config: ModelConfig, spec: ModelSpec, source: ProviderSource) -> None:
        """Creates the client.

        Raises:
            ConfigurationError: there is no API key.
        """
        key = ApiKey(config.provider, "CO_API_KEY")
        super().__init__(config, spec, source, key)
        self._model = source.location
        self._default_input_type = source.prompts["document"]
        # Not the library's default: with it, `close` would have no public way to the connections.
        self._http = httpx.AsyncClient(
            follow_redirects=True,
            limits=httpx.Limits(max_connections=None),  # the pool limits calls
        )
        self._client = cohere.AsyncClientV2(
            api_key=lambda: self.key.value,
            base_url=self.settings.base_url,
            httpx_client=self._http,
            max_retries=0,
        )

    async def request(self, texts: Sequence[str], prompt: str, timeout_s: float) -> Reply:
        """Makes one call for vectors in base64. A text over the limit is an error."""
        optional = {} if self.dimensions is None else {"output_dimension": self.dimensions}
        try:
            response = await self._client.embed(
                texts=[*texts],
                model=self._model,
                input_type=prompt or self._default_input_type,
                embedding_types=["base64"],
                truncate="NONE",
                request_options={"timeout": timeout_s, "additional_headers": trace_headers()},
                **optional,
            )
        except ApiError as error:
            status = error.status_code or 0
            if status < 300:
                raise MalformedReply("no JSON") from None
            raise FailedCall(status, error.headers or {}, error.body) from None
        except httpx.TimeoutException:
            raise TimeoutError from None
        except httpx.HTTPError as error:
            raise ConnectionError(type(error).__name__) from None
        units = getattr(getattr(response, "meta", None), "billed_units", None)
        vectors = getattr(getattr(response, "embeddings", None), "base64", None)
        return Reply(vectors, getattr(units, "input_tokens", None))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
