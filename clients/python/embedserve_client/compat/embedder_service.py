"""The interface of a document backend's embedder, so that its programs only change an import.

    from embedserve_client.compat.embedder_service import get_embedder_service

    service = get_embedder_service()
    result = await service.embed_text("a text")
    print(result.embedding, result.cached, result.cost)

Models, the keys of providers and the cache belong to the service at `EMBEDSERVE_URL`.
"""

import asyncio
import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain
from operator import itemgetter
from typing import Any, TypeVar, Unpack

import numpy as np

from embedserve_client.async_base import AsyncBaseClient
from embedserve_client.base import Call, ClientOptions, RerankOptions
from embedserve_client.errors import ParseError
from embedserve_client.flow import Flow, request
from embedserve_client.fork_safe_lock import ForkSafeLock
from embedserve_client.retry import send_with_retries
from embedserve_client.vectors import sum_usd
from embedserve_client.wire import Request, Response, parse_object, parse_space, post_request

R = TypeVar("R")

#: Short, because the caller's event loop waits.
_BLOCKING_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The vector of a text."""

    embedding: list[float]
    dimension: int  #: the length of `embedding`
    model: str
    cached: bool
    cost: float  #: in US dollars; 0 if the vector was cached, or the model has no price


@dataclass(frozen=True, slots=True)
class BatchEmbeddingResult:
    """The vectors of the texts of a batch that aren't empty, in order."""

    embeddings: list[list[float]]
    dimension: int  #: the length of each vector
    model: str
    total_embeddings: int
    cached_count: int
    total_cost: float  #: in US dollars; cached vectors cost nothing


class EmbedderService(AsyncBaseClient):
    """A client with the methods of a document backend's embedder.

    Safe across threads and event loops. The methods that aren't coroutines block for at most 5 s.
    """

    def __init__(
        self,
        default_model: str | None = None,
        openai_api_key: str | None = None,
        redis_client: Any = None,
        enable_caching: bool = True,
        *,
        base_url: str | None = None,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Creates a client.

        Args:
            default_model: the name or alias of the model of calls that name none; None: the
                service's default.
            openai_api_key: has no effect; a warning says where it belongs.
            redis_client: has no effect; a warning says where the cache is configured.
            enable_caching: False: all calls bypass the cache, for reading and for writing.
            base_url: the URL of the service; None: `EMBEDSERVE_URL`, or port 8000 on this machine.
            options: see `ClientOptions`.

        Raises:
            InvalidURLError: the URL is malformed.
            ValueError: an option has an invalid value.
        """
        if openai_api_key is not None:
            warnings.warn(
                "`openai_api_key` has no effect here: the service calls OpenAI. Set OPENAI_API_KEY "
                "in the environment of the service, and add OpenAI's models to its configuration.",
                stacklevel=2,
            )
        if redis_client is not None:
            warnings.warn(
                "`redis_client` has no effect here: the service has the cache. Set `cache.url` in "
                "its configuration to the URL of the Redis server.",
                stacklevel=2,
            )
        if default_model is not None:
            options["model"] = default_model
        super().__init__(base_url, **options)
        self._enable_caching = enable_caching

    async def embed_text(
        self, text: str, model: str | None = None, use_cache: bool = True
    ) -> EmbeddingResult:
        """Embeds a document.

        Args:
            text: the document.
            model: overrides the client's model.
            use_cache: False: bypasses the cache, for reading and for writing.

        Raises:
            ValueError: the text is empty.
            EmbedError: the call failed; `errors` lists the classes.
        """
        return await self._embed_one("text", text, model, use_cache)

    async def embed_query(
        self, query: str, model: str | None = None, use_cache: bool = True
    ) -> EmbeddingResult:
        """Embeds a search query; otherwise it is `embed_text`."""
        return await self._embed_one("query", query, model, use_cache)

    async def embed_batch(
        self,
        texts: Sequence[str],
        model: str | None = None,
        batch_size: int | None = None,
        use_cache: bool = True,
    ) -> BatchEmbeddingResult:
        """Embeds documents of any number, in order; empty ones are left out.

        Args:
            texts: the documents.
            model: overrides the client's model.
            batch_size: texts per request, at most the model's `max_batch_size`; None: that of the
                client. Several requests are sent concurrently.
            use_cache: False: bypasses the cache, for reading and for writing.

        Raises:
            ValueError: `texts` is a string or holds no text, or `batch_size` is below 1.
            EmbedError: the call failed; `errors` lists the classes.
        """
        if isinstance(texts, str):
            raise ValueError("`texts` is one string. Pass a list of strings.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1; it was {batch_size}.")
        texts = [text for text in texts if text != ""]
        if not texts:
            raise ValueError("`texts` holds no text. Pass at least one that isn't empty.")

        def fields(batch: Sequence[str]) -> dict[str, Any]:
            return {"texts": batch, "batch_size": batch_size}

        batches = self._split(texts, batch_size)
        call = self._call("/embed/batch", batches, fields, _parse_batch, _join, model, use_cache)
        return await self._run(call)

    def get_available_models(self) -> list[dict[str, Any]]:
        """Returns the models of the service that embed texts.

        Each has `name`, `provider`, `dimension`, `max_batch_size`, `max_input_length` in tokens,
        and `cost_per_1k_tokens` in US dollars.

        Raises:
            EmbedError: the call failed.
        """
        models: list[dict[str, Any]] = self._fetch("/embed/models?details=true", "models", list)
        return models

    def get_metrics(self) -> dict[str, Any]:
        """Returns totals of the service for all of its clients, since its start or the last reset.

        Raises:
            EmbedError: the call failed.
        """
        metrics: dict[str, Any] = self._fetch("/embed/metrics?details=true", "metrics", dict)
        return metrics

    def reset_metrics(self) -> None:
        """Resets the totals of the service to zero, for all of its clients.

        Raises:
            EmbedError: the call failed.
        """
        self._send_and_wait(post_request("/embed/metrics/reset", {}))

    async def _embed_one(
        self, field: str, text: str, model: str | None, use_cache: bool
    ) -> EmbeddingResult:
        if text == "":
            raise ValueError(f"`{field}` is empty. Pass at least one character.")

        def fields(batch: Sequence[str]) -> dict[str, Any]:
            return {field: batch[0]}

        path = f"/embed/{field}"
        call = self._call(path, [[text]], fields, _parse_one, itemgetter(0), model, use_cache)
        return await self._run(call)

    def _call(
        self,
        path: str,
        batches: Sequence[Sequence[str]],
        fields: Callable[[Sequence[str]], dict[str, Any]],
        parse: Callable[[Response, int], R],
        join: Callable[[list[R]], R],
        model: str | None,
        use_cache: bool,
    ) -> Call[Sequence[str], R, R]:
        """Returns a call.

        Args:
            path: the route of its requests.
            batches: the texts of each request.
            fields: returns the fields of a request, other than those of every route.
            parse: converts a response, given the number of its texts.
            join: joins the results of the requests.
            model: overrides the client's model.
            use_cache: False: bypasses the cache, which the client may do in any case.
        """
        options = RerankOptions(model=model, use_cache=self._enable_caching and use_cache)
        params, timeout_s = self._params(options, RerankOptions, len(batches))
        lane = params.pop("lane", None)

        def flow(batch: Sequence[str]) -> Flow[R]:
            def check_and_parse(response: Response) -> R:
                self._context.space_guard.check(parse_space(response), params["model"])
                return parse(response, len(batch))

            message = post_request(path, {**fields(batch), **params}, lane)
            task = "embed for an EmbedderService"
            return request(message, check_and_parse, self._context, timeout_s, task)

        return Call(batches, flow, join)

    def _fetch(self, path: str, member: str, type_: type) -> Any:
        """Returns a member of the JSON object at a path."""
        value = parse_object(self._send_and_wait(Request("GET", path))).get(member)
        if not isinstance(value, type_):
            raise ParseError(f"The response of {path} has no `{member}`. Is the URL right?")
        return value

    def _send_and_wait(self, message: Request) -> Response:
        """Sends a request from code that may run in an event loop, on another thread."""
        deadline = time.monotonic() + min(self.timeout_s, _BLOCKING_TIMEOUT_S)
        policy = self._context.retry_policy
        flow = send_with_retries(message, policy, deadline, time.monotonic)
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._drive(flow)).result()


def _parse_one(response: Response, n: int) -> EmbeddingResult:
    result = EmbeddingResult(**_parse_fields(response, EmbeddingResult))
    _check_vectors([result.embedding], (n, result.dimension))
    return result


def _parse_batch(response: Response, n: int) -> BatchEmbeddingResult:
    result = BatchEmbeddingResult(**_parse_fields(response, BatchEmbeddingResult))
    _check_vectors(result.embeddings, (n, result.dimension))
    return result


def _parse_fields(response: Response, type_: type) -> dict[str, Any]:
    """Returns the fields of a dataclass, which the response has as members of the same names."""
    body = parse_object(response)
    try:
        return {field.name: body[field.name] for field in dataclasses.fields(type_)}
    except KeyError as error:
        raise ParseError(f"The response has no {error}. Is the URL right?") from None


def _check_vectors(rows: Any, shape: tuple[int, int]) -> None:
    try:
        with np.errstate(over="ignore"):  # too large is infinite
            values = np.array(rows, dtype=np.float32)
    except (TypeError, ValueError):
        values = np.empty(0, dtype=np.float32)
    if values.shape != shape or not np.isfinite(values).all():
        raise ParseError(f"The response doesn't hold {shape[0]} finite vectors of equal length.")


def _join(results: list[BatchEmbeddingResult]) -> BatchEmbeddingResult:
    return dataclasses.replace(
        results[0],
        embeddings=[*chain.from_iterable(result.embeddings for result in results)],
        total_embeddings=sum(result.total_embeddings for result in results),
        cached_count=sum(result.cached_count for result in results),
        total_cost=sum_usd(result.total_cost for result in results),
    )


_create_service = cache(EmbedderService)
#: Two threads that make the first call must get the same service.
_create_lock = ForkSafeLock()


def get_embedder_service() -> EmbedderService:
    """Returns the service of this process, created at the first call.

    Raises:
        InvalidURLError: `EMBEDSERVE_URL` is malformed.
    """
    with _create_lock:
        return _create_service()
