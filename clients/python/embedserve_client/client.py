"""The synchronous client."""

import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Self, TypeVar, Unpack, overload

from embedserve_client import base
from embedserve_client.base import (
    BaseClient,
    Call,
    ClassifyOptions,
    ClientOptions,
    EmbedOptions,
    ImageOptions,
    RerankOptions,
    SparseOptions,
)
from embedserve_client.classify import LabelScore
from embedserve_client.errors import EmbedError
from embedserve_client.fallback import is_unavailable
from embedserve_client.flow import EmbedLocally
from embedserve_client.images import ImageInput
from embedserve_client.rerank import RerankResult
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.sentence_transformer import (
    SentenceTransformerInterface,
    progress_bar,
    truncate_token_ids,
)
from embedserve_client.sparse import SparseVector
from embedserve_client.transport import Transport
from embedserve_client.vectors import VectorInfo, Vectors
from embedserve_client.wire import (
    Request,
    Response,
    get_request,
    parse_object,
    parse_tokens,
    tokenize_request,
)

B = TypeVar("B", bound=Sequence[Any])
R = TypeVar("R")
T = TypeVar("T")


class Client(BaseClient, SentenceTransformerInterface):
    """A synchronous client. Safe across threads and forks.

    client = Client("http://127.0.0.1:8000")
    vectors = client.embed(["a text", "another"])  # float32, shape (2, dim)
    """

    def __init__(self, base_url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Creates a client; see `BaseClient`."""
        super().__init__(base_url, **options)
        self._transport = Transport(self.base_url, self._headers, self._concurrency)

    def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds texts, in order: float32 of shape (n, dim), or (dim,) for a single string.

        Raises:
            EmbedError: the call failed; `errors` lists the classes.
        """
        if isinstance(texts, str):
            vectors: Vectors = self.embed([texts], **options)[0]
            return vectors
        return self._run(self._embed_call(texts, options))

    def embed_query(self, text: str, **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds a search query; returns shape (dim,)."""
        options.setdefault("input_type", "query")
        return self.embed(text, **options)

    def embed_documents(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds documents to search in; returns shape (n, dim)."""
        options.setdefault("input_type", "document")
        return self.embed(list(texts), **options)

    def embed_images(
        self, images: ImageInput | Sequence[ImageInput], **options: Unpack[ImageOptions]
    ) -> Vectors:
        """Embeds images, in order: float32 of shape (n, dim), or (dim,) for a single image.

        Args:
            images: PNG, JPEG, GIF or WebP: the bytes of files, or their paths.
            options: see `ImageOptions`.

        Raises:
            ValueError: an image has another format.
            EmbedError: a file can't be read, or the call failed.
        """
        if isinstance(images, bytes | str | os.PathLike):
            vectors: Vectors = self.embed_images([images], **options)[0]
            return vectors
        return self._run(self._image_call(images, options))

    @overload
    def embed_sparse(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, texts: str, **options: Unpack[SparseOptions]
    ) -> SparseVector: ...
    @overload
    def embed_sparse(
        self, texts: Sequence[str], **options: Unpack[SparseOptions]
    ) -> list[SparseVector]: ...
    def embed_sparse(self, texts: Any, **options: Unpack[SparseOptions]) -> Any:
        """Computes sparse vectors of texts, in order; returns one vector for a single string.

        Raises:
            EmbedError: the call failed.
        """
        if isinstance(texts, str):
            return self.embed_sparse([texts], **options)[0]
        return self._run(self._sparse_call(texts, options))

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        top_n: int | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[RerankResult]:
        """Ranks documents by their relevance to a query, which a reranker judges; best first.

        Args:
            query: the search query.
            documents: the texts to rank; may be empty.
            top_n: the number of best documents to return; None: all.
            options: see `RerankOptions`.

        Raises:
            ValueError: `documents` is a string, or `top_n` is below 1.
            EmbedError: the call failed.
        """
        return self._run(self._rerank_call(query, documents, top_n, options))

    @overload
    def classify(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, texts: str, **options: Unpack[ClassifyOptions]
    ) -> list[LabelScore]: ...
    @overload
    def classify(
        self, texts: Sequence[str], **options: Unpack[ClassifyOptions]
    ) -> list[list[LabelScore]]: ...
    def classify(self, texts: Any, **options: Unpack[ClassifyOptions]) -> Any:
        """Classifies texts, in order: all labels of each, with their scores; the best first.

        A single string returns the labels of one text.

        Raises:
            EmbedError: the call failed.
        """
        if isinstance(texts, str):
            return self.classify([texts], **options)[0]
        return self._run(self._classify_call(texts, options))

    def health(self, timeout_s: float = 5.0, *, model: str | None = None) -> dict[str, Any]:
        """Returns the health of the service: `status` is `ok`, `degraded` or `unavailable`.

        Args:
            timeout_s: the timeout; there are no retries.
            model: a name or alias of a model; None: the client's model, or else the whole service.

        Raises:
            NetworkError: the service is unreachable.
            RequestTimeoutError: it didn't respond in time.
            HTTPError: it returned another error.
            ParseError: the response isn't a health report.
        """
        step = Send(get_request("/health", model or self.model), timeout_s)
        return base.parse_health(self._transport.send(step))

    def is_healthy(self, timeout_s: float = 5.0, *, model: str | None = None) -> bool:
        """Returns whether the service is reachable and can compute; see `health`."""
        try:
            return self.health(timeout_s, model=model).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    def info(self, *, model: str | None = None) -> dict[str, Any]:
        """Returns what is served: model, dimensions, space, engine, versions.

        Args:
            model: a name or alias of a model; None: the client's model, or the service's default.
        """
        return self._get(get_request("/info", model or self.model))

    def models(self) -> list[str]:
        """Returns the names of the served models."""
        return base.parse_model_names(self._get(base.MODELS_REQUEST))

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _get(self, request: Request) -> dict[str, Any]:
        return parse_object(self._send(request))

    def _send(self, request: Request) -> Response:
        deadline = time.monotonic() + self.timeout_s
        return self._drive(send_with_retries(request, RetryPolicy(), deadline, time.monotonic))

    def _encode(
        self, texts: list[str], prompt_name: str | None, batch_size: int | None, show_progress: bool
    ) -> Vectors:
        if not texts:
            return Vectors([], VectorInfo())
        with progress_bar(len(texts), shown=show_progress) as advance:
            options: EmbedOptions = {"input_type": prompt_name}
            return self._run(self._embed_call(texts, options, batch_size), advance)

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        fallback = self.fallback
        if fallback is None or fallback.route() != "local":
            try:
                rows = self._fetch_token_ids(texts)
            except EmbedError as error:
                if fallback is None or not is_unavailable(error):
                    raise
                fallback.record_failure(error)
            else:
                if fallback is not None:
                    fallback.record_success()
                return rows
        return fallback.model.token_ids(texts)

    def _fetch_token_ids(self, texts: list[str]) -> list[list[int]]:
        max_tokens = int(self.info()["max_tokens"])
        return [
            truncate_token_ids(row, max_tokens)
            for batch in self._split(texts)
            for row in parse_tokens(self._send(tokenize_request(batch, self.model)), len(batch))
        ]

    def _run(self, call: Call[B, R, T], advance: Callable[[int], None] = lambda n: None) -> T:
        """Sends the requests of a call; `advance` is called with the size of each that is done."""
        if len(call.batches) > 1:
            return call.join(self._run_concurrently(call, advance))
        results = list[R]()
        for batch in call.batches:
            results.append(self._drive(call.flow(batch)))
            advance(len(batch))
        return call.join(results)

    def _drive(self, flow: Generator[Any, Any, T]) -> T:
        """Runs the steps of a flow and returns its result."""
        outcome: Any = None
        try:
            while True:
                match flow.send(outcome):
                    case Sleep(seconds):
                        time.sleep(seconds)
                        outcome = None
                    case EmbedLocally(texts, params):
                        assert self.fallback is not None, "EmbedLocally without a fallback. A bug."
                        outcome = self.fallback.model.embed(texts, params)
                    case step:
                        outcome = self._try_send(step)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _try_send(self, step: Send) -> Response | EmbedError:
        try:
            return self._transport.send(step)
        except EmbedError as error:
            return error

    def _run_concurrently(self, call: Call[B, R, T], advance: Callable[[int], None]) -> list[R]:
        """Sends requests on several threads; the first failure stops new requests.

        The threads are daemons, so an interrupted program doesn't wait for pending responses.
        """
        results = dict[int, R]()
        failures = list[BaseException]()
        pending = iter(range(len(call.batches)))
        pending_lock = threading.Lock()

        def work() -> None:
            while not failures:
                with pending_lock:
                    i = next(pending, None)
                if i is None:
                    return
                try:
                    results[i] = self._drive(call.flow(call.batches[i]))
                    advance(len(call.batches[i]))
                except EmbedError as error:
                    failures.append(call.add_range(error, i))
                except BaseException as error:
                    failures.append(error)

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self._concurrency, len(call.batches)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            failures.append(error)
            raise
        if failures:
            raise failures[0]
        return [results[i] for i in range(len(call.batches))]
