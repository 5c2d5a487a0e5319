"""What the service needs of a provider: one call that embeds a batch of texts."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from serve_app.types import Float32


class BatchLimits(NamedTuple):
    """The most that one call may hold."""

    max_texts: int
    max_tokens: int


class EmbeddedTexts(NamedTuple):
    """The reply to one call, checked: one finite vector of the right width for each text."""

    vectors: Float32  #: shape (n, dim), in the order of the texts
    total_tokens: int | None  #: as the provider counts and bills them; None: it doesn't say


class Provider(Protocol):
    """One model of a provider. Belongs to one event loop."""

    @property
    def limits(self) -> BatchLimits:
        """Limits of one call."""
        ...

    @property
    def versions(self) -> dict[str, str]:
        """The version of the client library, by its name."""
        ...

    async def embed(self, texts: Sequence[str], prompt: str, timeout_s: float) -> EmbeddedTexts:
        """Makes one call, without retries.

        Args:
            texts: at most `limits.max_texts`.
            prompt: the value that the spec's `prompts` has for the input type. What a local model
                puts before a text, a provider gets as its own parameter, such as `input_type`.
            timeout_s: time limit of the call.

        Raises:
            InvalidRequest: the provider refused the texts; a retry fails as well.
            Overloaded: the provider's rate limit; `retry_after_s` is what it asked for, or 0.
            Unavailable: timeout, lost connection or 5xx; a retry may succeed.
            UpstreamError: the key was refused, or the reply is wrong: other counts or widths, NaN,
                malformed. The message never contains the key.
        """
        ...

    def count_tokens(self, texts: Sequence[str], prompt: str) -> list[int] | None:
        """Returns the number of tokens of each text, what the prompt adds to it included.

        None if only the provider can count them.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...
