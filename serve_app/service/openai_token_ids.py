"""Decodes token ids of OpenAI's encodings, which some clients send in place of text."""

from typing import Any

from serve_app.errors import ConfigurationError, InvalidRequest
from serve_app.inputs import Input


class TiktokenDecoder:
    """Decodes the ids of one encoding, with the package `tiktoken`."""

    def __init__(self, encoding: str) -> None:
        """Loads an encoding, from the network unless `tiktoken` has cached it.

        Raises:
            ConfigurationError: `tiktoken` isn't installed, or can't load the encoding.
        """
        try:
            import tiktoken
        except ImportError:
            raise ConfigurationError(
                f"`token_ids: {encoding}` needs tiktoken: `pip install 'embedserve[tiktoken]'`."
            ) from None
        try:
            self._encoding: Any = tiktoken.get_encoding(encoding)
        except Exception as error:  # tiktoken passes on any error of its HTTP library
            raise ConfigurationError(
                f"tiktoken can't load the encoding {encoding} ({type(error).__name__}). Give the "
                "service network access, or set TIKTOKEN_CACHE_DIR to a directory that contains it."
            ) from error
        self._name = encoding

    def decode(self, value: Input) -> Input:
        """Returns the text of token ids. A text is returned unchanged.

        Raises:
            InvalidRequest: an id is not in the encoding.
        """
        if isinstance(value, str):
            return value
        try:
            raw: bytes = self._encoding.decode_bytes(value)
        except (KeyError, OverflowError):
            raise InvalidRequest(f"The token ids are not all of {self._name}.", "texts") from None
        return raw.decode(errors="replace")  # a client may split ids inside a character
