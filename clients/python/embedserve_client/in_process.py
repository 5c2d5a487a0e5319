"""A model in this process, for programs on an event loop: it computes on another thread."""

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from embedserve_client.base import How
from embedserve_client.local import LocalModel
from embedserve_client.vectors import Vectors
from embedserve_client.wire import Options


class InProcess:
    """Stands where an `AsyncClient` would."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    async def embed(self, texts: str | Sequence[str], **how: Unpack[How]) -> Vectors:
        """As `AsyncClient.embed`."""
        given: dict[str, Any] = dict(how)
        for only_elsewhere in ("timeout_s", "lane", "use_cache"):
            given.pop(only_elsewhere, None)
        one = isinstance(texts, str)
        found = await asyncio.to_thread(
            self._model.embed, [texts] if isinstance(texts, str) else texts, Options(**given)
        )
        vectors: Vectors = found[0] if one else found
        return vectors

    async def close(self) -> None:
        """Nothing is open."""
