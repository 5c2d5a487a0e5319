"""What all providers share: a call has a time limit, its reply is checked, keys are replaced."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from typing import ClassVar

from serve_app.config import ModelConfig
from serve_app.errors import EmbedServeError, Unavailable, UpstreamError
from serve_app.model_spec import ModelSpec
from serve_app.providers.api_key import ApiKey
from serve_app.providers.base import BatchLimits, EmbeddedTexts
from serve_app.providers.failed_call import FailedCall
from serve_app.providers.reply import MalformedReply, Reply, check_reply
from serve_app.sources import ProviderSource

#: Vectors of so many texts take milliseconds to decode, which would hold up other requests.
_LARGE_BATCH = 64


class HttpProvider(ABC):
    """One model of a provider, called with the provider's own client library."""

    library: ClassVar[str]  #: name of the client library

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, source: ProviderSource, key: ApiKey
    ) -> None:
        """Creates a provider without connections.

        Args:
            config: the model's entry.
            spec: the model.
            source: the model's source.
            key: the API key.
        """
        settings = config.provider
        data = source.data(config.name, settings.model)
        max_tokens = data.max_batch_tokens if data else None
        self.settings = settings
        self.key = key
        self._name = source.kind
        self._dim = spec.dim
        #: The dimensions to ask for; None: the model's own.
        self.dimensions = None if data and data.dimension == spec.dim else spec.dim
        self._limits = BatchLimits(
            settings.max_batch_texts or source.max_texts,
            settings.max_batch_tokens or max_tokens or source.max_batch_tokens,
        )

    @property
    def limits(self) -> BatchLimits:
        """Limits of one call."""
        return self._limits

    @property
    def versions(self) -> dict[str, str]:
        """The version of the client library, by its name."""
        return {self.library: version(self.library)}

    @abstractmethod
    async def request(self, texts: Sequence[str], prompt: str, timeout_s: float) -> Reply:
        """Makes one call.

        Raises:
            FailedCall: the provider answered with another status than 2xx.
            MalformedReply: what it answered can't be read.
            ConnectionError: there was no answer; names the cause.
            TimeoutError: there was no answer in time.
        """

    def count_tokens(self, texts: Sequence[str], prompt: str) -> list[int] | None:
        """Returns None: only the provider counts."""
        return None

    @abstractmethod
    async def close(self) -> None:
        """Closes the connections."""

    async def embed(self, texts: Sequence[str], prompt: str, timeout_s: float) -> EmbeddedTexts:
        """Makes one call, and a second one if the provider refused a key that has been replaced.

        Raises:
            InvalidRequest, Overloaded, Unavailable, UpstreamError: see `Provider.embed`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                key = self.key.value
                try:
                    reply = await self.request(texts, prompt, timeout_s)
                except FailedCall as failure:
                    if failure.status != HTTPStatus.UNAUTHORIZED:
                        raise
                    if self.key.value == key and not self.key.reload():
                        raise
                    reply = await self.request(texts, prompt, timeout_s)
            if len(texts) < _LARGE_BATCH:
                return check_reply(reply, len(texts), self._dim)
            return await asyncio.to_thread(check_reply, reply, len(texts), self._dim)
        except FailedCall as failure:
            error: EmbedServeError = failure.error(self._name, self.key.redact)
        except MalformedReply as reason:
            error = UpstreamError(f"The provider {self._name} returned {reason}.")
        except TimeoutError:
            error = Unavailable(f"The provider {self._name} didn't answer in {timeout_s:g} s.")
        except ConnectionError as cause:
            error = Unavailable(f"The connection to the provider {self._name} failed ({cause}).")
        except Exception as cause:
            # The libraries read any JSON without validation, so they fail in many ways.
            error = UpstreamError(
                f"The client library can't read what the provider {self._name} returned "
                f"({type(cause).__name__})."
            )
        # Not chained: errors of client libraries hold requests, and with them the key.
        raise error
