"""The protocol of `embedserve stdio`: JSON lines over standard input and output.

The server writes `{"status": "ready"}` once it has computed a vector. Each request line `{"id",
"command", "params"}` gets a reply `{"id", "result"}` or `{"id", "error"}`; replies may come in any
order. `encode-query` takes `text` (or `query`) and returns one vector; `encode-batch` takes `texts`
and returns a list. `embed` takes `texts`, `input_type` and `dimensions`, and returns `{"vectors",
"space", "model"}`. All of them take `model`, a name or alias. The number of concurrent requests is
bounded: beyond it the server stops reading, which blocks the writer.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import orjson

from embedserve_client.errors import (
    EmbedError,
    HTTPError,
    NetworkError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from embedserve_client.files.job import AsyncEmbedder
from embedserve_client.prefetch import Prefetcher

QUERY, BATCH, EMBED = "encode-query", "encode-batch", "embed"
DEFAULT_CONCURRENCY = 64
#: As long as the supervisors wait for a service that prepares its model.
DEFAULT_READY_TIMEOUT_S = 600.0
_MAX_LINE_BYTES = 64 << 20
#: Time between two attempts to reach the service before the server is ready.
_READY_POLL_S = 0.5
_READY_TEXT = "ready"


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
        ready_timeout_s: float = DEFAULT_READY_TIMEOUT_S,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """Creates a server.

        Args:
            embedder: computes the vectors.
            requests: the stream of request lines.
            replies: the stream for reply lines.
            concurrency: the maximum number of concurrent requests.
            ready_timeout_s: the time in which the embedder must return a vector.
            on_progress: called with each reason why there is no vector yet.
        """
        self._embedder = embedder
        self._requests = requests
        self._replies = replies
        self._semaphore = asyncio.Semaphore(concurrency)
        self._ready_timeout_s = ready_timeout_s
        self._on_progress = on_progress or (lambda reason: None)

    async def run(self) -> None:
        """Serves until the input has ended and all replies are written.

        Raises:
            EmbedError: the embedder returned no vector in time, or it never will, for example
                because the API key is wrong.
        """
        lines = Prefetcher(iter(lambda: self._requests.readline(_MAX_LINE_BYTES + 1), b""))
        line = asyncio.ensure_future(anext(lines, b""))  # empty at the end of the input
        ready = asyncio.create_task(self._wait_until_ready())
        # A caller that exits before the server is ready must not leave it behind.
        await asyncio.wait((line, ready), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done() and not line.result():
            ready.cancel()
            return
        await ready
        self._write({"status": "ready"})
        async with asyncio.TaskGroup() as tasks:
            while await line:
                if line.result().strip():
                    await self._semaphore.acquire()
                    task = tasks.create_task(self._handle(line.result()))
                    task.add_done_callback(lambda _: self._semaphore.release())
                line = asyncio.ensure_future(anext(lines, b""))

    async def _wait_until_ready(self) -> None:
        """Returns when the embedder has returned a vector."""
        deadline = time.monotonic() + self._ready_timeout_s
        reason = ""
        while True:
            remaining_s = max(_READY_POLL_S, deadline - time.monotonic())
            try:
                await self._embedder.embed([_READY_TEXT], input_type="query", timeout_s=remaining_s)
                return
            except (NetworkError, RateLimitError, RequestTimeoutError, ServerError) as error:
                if time.monotonic() + _READY_POLL_S >= deadline:
                    raise
                if str(error) != reason:
                    reason = str(error)
                    self._on_progress(reason)
            await asyncio.sleep(_READY_POLL_S)

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
    model = params.get("model")
    if not isinstance(model, str | None):
        raise InvalidRequestError("`model` must be a string.")
    if command == QUERY:
        text = params.get("text", params.get("query"))
        if not isinstance(text, str):
            raise InvalidRequestError("`encode-query` needs `params.text`, a string.")
        return await encode(embedder, QUERY, [text], model)
    if command not in (BATCH, EMBED):
        raise InvalidRequestError(f"Unknown command {command!r}. Use `{QUERY}` or `{BATCH}`.")
    texts = params.get("texts")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"`{command}` needs `params.texts`, a list of strings.")
    if command == BATCH:
        return await encode(embedder, BATCH, texts, model)
    return await _embed(embedder, texts, params.get("input_type"), params.get("dimensions"), model)


async def _embed(
    embedder: AsyncEmbedder, texts: list[str], input_type: Any, dimensions: Any, model: str | None
) -> dict[str, Any]:
    """Returns the vectors of texts together with their space and model."""
    if not isinstance(input_type, str | None) or not isinstance(dimensions, int | None):
        raise InvalidRequestError("`input_type` must be a string and `dimensions` an integer.")
    vectors = await embedder.embed(texts, input_type=input_type, dimensions=dimensions, model=model)
    space = None if vectors.space is None else str(vectors.space)
    return {"vectors": vectors.__array__(), "space": space, "model": vectors.info.model}


async def encode(
    embedder: AsyncEmbedder, command: str, texts: Sequence[str], model: str | None = None
) -> Any:
    """Returns the vector of a query, or a list of vectors of a batch, as float32 arrays."""
    if command == BATCH and not texts:
        return []
    input_type = "query" if command == QUERY else "document"
    vectors = await embedder.embed(list(texts), input_type=input_type, model=model)
    rows = [vectors[i].__array__() for i in range(len(vectors))]
    return rows[0] if command == QUERY else rows


def claim_standard_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Returns standard input and output for the protocol; other output goes to standard error."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    return requests, replies
