"""Counts tokens as OpenAI does, without the network."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

#: The encoding of all of OpenAI's embedding models.
_ENCODING = "cl100k_base"
_FILE_URL = f"https://openaipublic.blob.core.windows.net/encodings/{_ENCODING}.tiktoken"

#: So much of a text is read. Longer ones exceed every model's limit, unless they are mostly blank,
#: and those without blanks take half a second for each megabyte.
_MAX_CHARS = 131_072


class OpenAITokenCounter:
    """Counts with tiktoken, if it is installed and has the encoding in its cache directory."""

    def __init__(self) -> None:
        """Loads the encoding, unless tiktoken would download it."""
        self._encoding: Any = _load() if _is_cached() else None

    def count(self, texts: Sequence[str]) -> list[int] | None:
        """Returns the number of tokens of each text; None without tiktoken or its file.

        Of a text with more than 131,072 characters, it is the number in those.
        """
        if self._encoding is None:
            return None
        return [len(self._encoding.encode_ordinary(text[:_MAX_CHARS])) for text in texts]


def _is_cached() -> bool:
    default = str(Path(gettempdir(), "data-gym-cache"))
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    # tiktoken names its files so, and documents it for machines without a network.
    name = hashlib.sha1(_FILE_URL.encode(), usedforsecurity=False).hexdigest()
    return bool(folder) and Path(folder, name).is_file()


def _load() -> Any:
    try:
        import tiktoken
    except ImportError:
        return None
    return tiktoken.get_encoding(_ENCODING)
