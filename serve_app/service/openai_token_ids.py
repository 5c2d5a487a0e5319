"""Token ids of OpenAI's models, turned back into the text that they were made of."""

from typing import Any

from serve_app.errors import ConfigurationError, InvalidRequest
from serve_app.types import Input


class TiktokenDecoder:
    """Decodes ids of one of OpenAI's encodings; the package `tiktoken` knows them."""

    def __init__(self, encoding: str) -> None:
        """Loads an encoding, from the network where `tiktoken` doesn't have it yet.

        Raises:
            ConfigurationError: `tiktoken` isn't installed, or can't get the encoding.
        """
        try:
            import tiktoken
        except ImportError:
            raise ConfigurationError(
                f"`token_ids: {encoding}` needs tiktoken: `pip install 'embedserve[tiktoken]'`."
            ) from None
        try:
            self._encoding: Any = tiktoken.get_encoding(encoding)
        except Exception as error:  # whatever its HTTP library raises
            raise ConfigurationError(
                f"tiktoken can't get the encoding {encoding} ({type(error).__name__}). Give the "
                "service a network, or a folder that holds it in TIKTOKEN_CACHE_DIR."
            ) from error
        self._name = encoding

    def text(self, given: Input) -> Input:
        """The text of ids; a text as it is.

        Raises:
            InvalidRequest: an id isn't of the encoding.
        """
        if not isinstance(given, tuple):
            return given
        try:
            raw: bytes = self._encoding.decode_bytes(given)
        except (KeyError, OverflowError):
            raise InvalidRequest(f"The token ids are not all of {self._name}.", "texts") from None
        return raw.decode(errors="replace")  # ids may have been split inside a character
