"""Voyage AI, by the package `voyageai`."""

import logging
from collections.abc import Sequence
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import voyageai

from serve_app.config import ModelConfig
from serve_app.model_spec import ModelSpec
from serve_app.providers.api_key import ApiKey
from serve_app.providers.failed_call import FailedCall
from serve_app.providers.http_provider import HttpProvider
from serve_app.providers.reply import MalformedReply, Reply, order_openai_reply
from serve_app.sources import ProviderSource
from serve_app.spans import trace_headers

# Below this level the library logs texts, and what the API says about the key.
logging.getLogger("voyage").setLevel(logging.WARNING)


class VoyageProvider(HttpProvider):
    """A model of Voyage AI."""

    library = "voyageai"

    def __init__(self, config: ModelConfig, spec: ModelSpec, source: ProviderSource) -> None:
        """Creates a provider; the first call opens connections.

        Raises:
            ConfigurationError: there is no API key.
        """
        super().__init__(config, spec, source, ApiKey(config.provider, "VOYAGE_API_KEY"))
        self._model = source.location
        self._session: aiohttp.ClientSession | None = None

    async def request(self, texts: Sequence[str], prompt: str, timeout_s: float) -> Reply:
        """Makes one call for vectors in base64. A text over the limit is an error.

        `voyageai.AsyncClient` drops the indices of the vectors, so this calls what it calls.
        """
        if self._session is None:
            self._session = _session(self.settings.base_url)
        token = voyageai.aiosession.set(self._session)
        try:
            reply = await voyageai.Embedding.acreate(
                api_key=self.key.value,
                base_url=self.settings.base_url,
                request_timeout=timeout_s,
                input=[*texts],
                model=self._model,
                input_type=prompt or None,
                truncation=False,
                output_dimension=self.dimensions,
                encoding_format="base64",
            )
        except (voyageai.error.Timeout, aiohttp.ServerTimeoutError):
            raise TimeoutError from None
        except voyageai.error.APIConnectionError as error:
            raise ConnectionError(type(error.__cause__).__name__) from None
        except aiohttp.ClientError as error:
            raise ConnectionError(type(error).__name__) from None
        except voyageai.error.VoyageError as error:
            status = error.http_status
            if status is None or status < 300:
                raise MalformedReply("no JSON") from None
            raise FailedCall(status, error.headers, error.json_body) from None
        finally:
            voyageai.aiosession.reset(token)
        return order_openai_reply(reply, len(texts))

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()


def _session(base_url: str | None) -> aiohttp.ClientSession:
    """Returns a session that keeps connections and uses the proxy of the environment.

    With `trust_env`, aiohttp would read `~/.netrc` before each call, in a thread.
    """
    tracing = aiohttp.TraceConfig()
    tracing.on_request_start.append(_add_trace_headers)
    address = urlsplit(base_url or "https://api.voyageai.com")
    proxies = getproxies()
    proxy = proxies.get(address.scheme, proxies.get("all"))
    return aiohttp.ClientSession(
        proxy=None if proxy_bypass(address.hostname or "") else proxy,
        connector=aiohttp.TCPConnector(limit=0),  # the pool limits calls
        trace_configs=[tracing],
    )


async def _add_trace_headers(
    session: aiohttp.ClientSession, context: object, request: aiohttp.TraceRequestStartParams
) -> None:
    """Adds headers to a request, which voyageai would remove from its own."""
    request.headers.update(trace_headers())
