"""The synchronous client."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Self, TypeVar, Unpack

from embedserve_client import base
from embedserve_client.base import BaseClient, ClientOptions, EmbedOptions
from embedserve_client.errors import EmbedError
from embedserve_client.fallback import is_unavailable
from embedserve_client.flow import HEALTH_REQUEST, EmbedLocally, embed
from embedserve_client.retry import RetryPolicy, Send, Sleep, send_with_retries
from embedserve_client.sentence_transformer import (
    SentenceTransformerInterface,
    progress_bar,
    truncate_token_ids,
)
from embedserve_client.transport import Transport
from embedserve_client.vectors import VectorInfo, Vectors, concatenate
from embedserve_client.wire import (
    EmbedParams,
    Request,
    Response,
    parse_object,
    parse_tokens,
    tokenize_request,
)

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
        return self._embed_list(texts, options)

    def embed_query(self, text: str, **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds a search query; returns shape (dim,)."""
        options.setdefault("input_type", "query")
        return self.embed(text, **options)

    def embed_documents(self, texts: Sequence[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """Embeds documents to search in; returns shape (n, dim)."""
        options.setdefault("input_type", "document")
        return self.embed(list(texts), **options)

    def health(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Returns the health of the service: `status` is `ok`, `degraded` or `unavailable`.

        Raises:
            NetworkError: the service is unreachable.
            RequestTimeoutError: it didn't respond in time.
            HTTPError: it returned another error.
            ParseError: the response isn't a health report.
        """
        return base.parse_health(self._transport.send(Send(HEALTH_REQUEST, timeout_s)))

    def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Returns whether the service is reachable and can embed."""
        try:
            return self.health(timeout_s).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    def info(self) -> dict[str, Any]:
        """Returns what is served: model, dimensions, space, engine, versions."""
        return self._get(base.INFO_REQUEST)

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
            return self._embed_list(texts, {"input_type": prompt_name}, batch_size, advance)

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
        batches, _, _ = self._split(texts, {})
        return [
            truncate_token_ids(row, max_tokens)
            for batch in batches
            for row in parse_tokens(self._send(tokenize_request(batch)), len(batch))
        ]

    def _embed_list(
        self,
        texts: Sequence[str],
        options: EmbedOptions,
        batch_size: int | None = None,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Vectors:
        """Embeds texts in batches; `advance` is called with the size of each that is done."""
        batches, params, timeout_s = self._split(texts, options, batch_size)
        if len(batches) > 1:
            return concatenate(self._embed_batches(batches, params, timeout_s, advance))
        vectors = self._drive(embed(batches[0], params, self._context, timeout_s))
        advance(len(texts))
        return vectors

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

    def _embed_batches(
        self,
        batches: Sequence[Sequence[str]],
        params: EmbedParams,
        timeout_s: float,
        advance: Callable[[int], None],
    ) -> list[Vectors]:
        """Embeds batches on several threads; the first failure stops new requests.

        The threads are daemons, so an interrupted program doesn't wait for pending responses.
        """
        results = dict[int, Vectors]()
        failures = list[BaseException]()
        pending: Iterator[tuple[int, Sequence[str]]] = iter(enumerate(batches))
        pending_lock = threading.Lock()

        def work() -> None:
            while not failures:
                with pending_lock:
                    i, batch = next(pending, (-1, ()))
                if i < 0:
                    return
                try:
                    results[i] = self._drive(embed(batch, params, self._context, timeout_s))
                    advance(len(batch))
                except EmbedError as error:
                    failures.append(base.add_text_range(error, i * len(batches[0]), batch))
                except BaseException as error:
                    failures.append(error)

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self._concurrency, len(batches)))
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
        return [results[i] for i in range(len(batches))]
