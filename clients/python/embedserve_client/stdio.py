"""The protocol of `embedserve stdio`: JSON lines over standard input and output.

The server first writes `{"status": "ready"}`. Each request line `{"id", "command", "params"}` gets
a reply `{"id", "result"}` or `{"id", "error"}`; replies may come in any order. `encode-query` takes
`text` (or `query`) and returns one vector; `encode-batch` takes `texts` and returns a list. The
number of concurrent requests is bounded: beyond it the server stops reading, which blocks the
writer.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

import orjson

from embedserve_client.errors import EmbedError, HTTPError
from embedserve_client.files.job import AsyncEmbedder
from embedserve_client.prefetch import Prefetcher

QUERY, BATCH = "encode-query", "encode-batch"
DEFAULT_CONCURRENCY = 64
_MAX_LINE_BYTES = 64 << 20


class InvalidRequestError(Exception):
    """A line isn't a valid request; the message says why."""


class StdioServer:
    """Replies to request lines until the input ends."""

    def __init__(
        self,
        embedder: AsyncEmbedder,
        requests: IO[bytes],
        replies: IO[bytes],
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        """Creates a server.

        Args:
            embedder: computes the vectors.
            requests: the stream of request lines.
            replies: the stream for reply lines.
            concurrency: the maximum number of concurrent requests.
        """
        self._embedder = embedder
        self._requests = requests
        self._replies = replies
        self._semaphore = asyncio.Semaphore(concurrency)

    async def run(self) -> None:
        """Serves until the input has ended and all replies are written."""
        lines = Prefetcher(iter(lambda: self._requests.readline(_MAX_LINE_BYTES + 1), b""))
        self._write({"status": "ready"})
        async with asyncio.TaskGroup() as tasks:
            async for line in lines:
                if not line.strip():
                    continue
                await self._semaphore.acquire()
                task = tasks.create_task(self._handle(line))
                task.add_done_callback(lambda _: self._semaphore.release())

    async def _handle(self, line: bytes) -> None:
        request_id: Any = None
        try:
            request = _parse_request(line)
            request_id = request.get("id")
            result = await _execute(self._embedder, request.get("command"), request.get("params"))
        except (InvalidRequestError, EmbedError) as error:
            message = str(error.args[0]) if isinstance(error, HTTPError) else str(error)
            self._write({"id": request_id, "error": message})
        else:
            self._write({"id": request_id, "result": result})

    def _write(self, reply: dict[str, Any]) -> None:
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self._replies.write(orjson.dumps(reply, option=option))
        self._replies.flush()


def _parse_request(line: bytes) -> dict[str, Any]:
    if len(line) > _MAX_LINE_BYTES:
        raise InvalidRequestError(f"The line is longer than {_MAX_LINE_BYTES >> 20} MiB.")
    try:
        request = orjson.loads(line)
    except ValueError as error:
        raise InvalidRequestError(f"The line isn't JSON: {error}.") from None
    if not isinstance(request, dict):
        raise InvalidRequestError('The line isn\'t of the form {"id", "command", "params"}.')
    return request


async def _execute(embedder: AsyncEmbedder, command: Any, params: Any) -> Any:
    if not isinstance(params, dict):
        raise InvalidRequestError("`params` must be an object.")
    if command == QUERY:
        text = params.get("text", params.get("query"))
        if not isinstance(text, str):
            raise InvalidRequestError("`encode-query` needs `params.text`, a string.")
        return await encode(embedder, QUERY, [text])
    if command == BATCH:
        texts = params.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequestError("`encode-batch` needs `params.texts`, a list of strings.")
        return await encode(embedder, BATCH, texts)
    raise InvalidRequestError(f"Unknown command {command!r}. Use `{QUERY}` or `{BATCH}`.")


async def encode(embedder: AsyncEmbedder, command: str, texts: Sequence[str]) -> Any:
    """Returns the vector of a query, or a list of vectors of a batch, as float32 arrays."""
    if command == BATCH and not texts:
        return []
    input_type = "query" if command == QUERY else "document"
    vectors = await embedder.embed(list(texts), input_type=input_type)
    rows = [vectors[i].__array__() for i in range(len(vectors))]
    return rows[0] if command == QUERY else rows


def claim_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Returns standard input and output for the protocol; other output goes to standard error."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    return requests, replies
