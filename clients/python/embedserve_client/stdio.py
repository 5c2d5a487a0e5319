"""Vectors over standard input and output, one JSON line for each request and each reply.

`{"status": "ready"}` comes first. Then a line `{"id", "command", "params"}` is answered by
`{"id", "result"}` or `{"id", "error"}`, in whatever order answers come. `encode-query` takes one
text as `text` or `query` and gives one vector, `encode-batch` takes `texts` and gives a list.
So many requests are under way at once and no more are read, so that whoever writes faster than the
service answers has to wait.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

import orjson

from embedserve_client.errors import EmbedError, HTTPError
from embedserve_client.feed import Feed
from embedserve_client.files.job import Embedder

QUERY, BATCH = "encode-query", "encode-batch"
_MOST = 64
_LINE_BYTES = 64 << 20


class BadLine(Exception):
    """A line that is no request; the message says why."""


class Bridge:
    """Answers lines, until there are no more."""

    def __init__(
        self, embedder: Embedder, lines: IO[bytes], replies: IO[bytes], most: int = _MOST
    ) -> None:
        """A bridge.

        Args:
            embedder: computes the vectors.
            lines: requests are read from here.
            replies: answers are written here, each whole.
            most: requests under way at once.
        """
        self._embedder = embedder
        self._lines = lines
        self._replies = replies
        self._places = asyncio.Semaphore(most)

    async def run(self) -> None:
        """Says that it is ready, and returns when the input has ended and all is answered."""
        lines = Feed(iter(lambda: self._lines.readline(_LINE_BYTES + 1), b""))
        self._write({"status": "ready"})
        async with asyncio.TaskGroup() as tasks:
            while (line := await lines.next()) is not None:
                if not line.strip():
                    continue
                await self._places.acquire()
                task = tasks.create_task(self._answer(line))
                task.add_done_callback(lambda _: self._places.release())

    async def _answer(self, line: bytes) -> None:
        name: Any = None
        try:
            request = _request(line)
            name = request.get("id")
            result = await _result(self._embedder, request.get("command"), request.get("params"))
        except (BadLine, EmbedError) as error:
            self._write({"id": name, "error": _words(error)})
        else:
            self._write({"id": name, "result": result})

    def _write(self, reply: dict[str, Any]) -> None:
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self._replies.write(orjson.dumps(reply, option=option))
        self._replies.flush()


def _request(line: bytes) -> dict[str, Any]:
    if len(line) > _LINE_BYTES:
        raise BadLine(f"A line has more than {_LINE_BYTES >> 20} MiB.")
    try:
        request = orjson.loads(line)
    except ValueError as error:
        raise BadLine(f"The line isn't JSON: {error}.") from None
    if not isinstance(request, dict):
        raise BadLine('The line isn\'t of the form {"id", "command", "params"}.')
    return request


async def _result(embedder: Embedder, command: Any, params: Any) -> Any:
    if not isinstance(params, dict):
        raise BadLine("`params` must be an object.")
    if command == QUERY:
        text = params.get("text", params.get("query"))
        if not isinstance(text, str):
            raise BadLine("`encode-query` needs `params.text`, a string.")
        return await encode(embedder, QUERY, [text])
    if command == BATCH:
        texts = params.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise BadLine("`encode-batch` needs `params.texts`, a list of strings.")
        return await encode(embedder, BATCH, texts)
    raise BadLine(f"Unknown command {command!r}; there are `{QUERY}` and `{BATCH}`.")


async def encode(embedder: Embedder, command: str, texts: Sequence[str]) -> Any:
    """One vector of the one text, or a list of vectors, as rows that JSON can be made of."""
    if command == BATCH and not texts:
        return []
    purpose = "query" if command == QUERY else "document"
    vectors = await embedder.embed(list(texts), input_type=purpose)
    rows = [vectors[i].__array__() for i in range(len(vectors))]
    return rows[0] if command == QUERY else rows


def _words(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, HTTPError) else str(error)


def private_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Standard input and output for the protocol alone: what else prints goes to the errors."""
    lines = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    return lines, replies
