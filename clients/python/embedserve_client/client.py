"""The client for programs without an event loop."""

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self, TypeVar, Unpack

from embedserve_client import base
from embedserve_client.base import BaseClient, How, Settings
from embedserve_client.errors import EmbedError
from embedserve_client.flow import HEALTH, Compute, embed
from embedserve_client.retry import Retry, Send, Wait, exchange
from embedserve_client.transport import Transport
from embedserve_client.vectors import Float32, Vectors, joined
from embedserve_client.wire import Options, Reply, Request, read_object

T = TypeVar("T")


class Client(BaseClient):
    """Asks a service for vectors. Safe from many threads, and after a fork.

    client = Client("http://127.0.0.1:8000")
    vectors = client.embed(["a text", "another"])  # float32, shape (2, dim)
    """

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        """As `BaseClient`."""
        super().__init__(url, **settings)
        self._transport = Transport(self.url, self._headers, self._concurrency)

    def embed(self, texts: str | Sequence[str], **how: Unpack[How]) -> Vectors:
        """Vectors of texts, in order: float32, shape (n, dim); of one string (dim,).

        Raises:
            EmbedError: the kinds of which stand in `errors`; nothing else but what Python raises
                for wrong arguments.
        """
        if isinstance(texts, str):
            vectors: Vectors = self.embed([texts], **how)[0]
            return vectors
        parts, options, timeout_s = self._call(texts, how)
        if len(parts) == 1:
            return self._drive(embed(parts[0], options, self._rules, timeout_s))
        return joined(self._spread(parts, options, timeout_s))

    def embed_query(self, text: str, **how: Unpack[How]) -> Vectors:
        """The vector of what is searched for, shape (dim,)."""
        how.setdefault("input_type", "query")
        return self.embed(text, **how)

    def embed_documents(self, texts: Sequence[str], **how: Unpack[How]) -> Vectors:
        """The vectors of what is searched, shape (n, dim)."""
        how.setdefault("input_type", "document")
        return self.embed(list(texts), **how)

    def encode(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, **ignored: Any
    ) -> Float32:
        """Stands in for `SentenceTransformer.encode`: the same vectors, computed elsewhere.

        Options that only say how to compute (`batch_size`, `show_progress_bar`, `device`, …) are
        taken and not needed.
        """
        return self.embed(sentences, input_type=prompt_name)

    def health(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """What the service says of itself: `status` is `ok`, `degraded` or `unavailable`.

        Raises:
            NetworkError, Timeout, HTTPError, ParseError: it says nothing of the kind.
        """
        return base.health_of(self._transport.send(Send(HEALTH, timeout_s)))

    def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the service is there and can embed."""
        try:
            return self.health(timeout_s).get("status") in ("ok", "degraded")
        except EmbedError:
            return False

    def info(self) -> dict[str, Any]:
        """What is served: model, dimensions, space, engine, versions."""
        return self._ask(base.INFO)

    def models(self) -> list[str]:
        """The names of what is served."""
        return base.model_names(self._ask(base.MODELS))

    def close(self) -> None:
        """Closes its connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _ask(self, request: Request) -> dict[str, Any]:
        end = time.monotonic() + self.timeout_s
        return read_object(self._drive(exchange(request, Retry(), end, time.monotonic)))

    def _drive(self, flow: Generator[Any, Any, T]) -> T:
        """Does what a flow says, until it has what it is for."""
        answer: Any = None
        try:
            while True:
                match flow.send(answer):
                    case Wait(seconds):
                        time.sleep(seconds)
                        answer = None
                    case Compute(texts, options):
                        assert self.fallback is not None, "Nobody else computes. This is a bug."
                        answer = self.fallback.model.embed(texts, options)
                    case step:
                        answer = self._send(step)
        except StopIteration as stop:
            done: T = stop.value
            return done

    def _send(self, step: Send) -> Reply | EmbedError:
        try:
            return self._transport.send(step)
        except EmbedError as error:
            return error

    def _spread(
        self, parts: Sequence[Sequence[str]], options: Options, timeout_s: float
    ) -> list[Vectors]:
        """Embeds parts on a few threads; after the first failure none is begun any more.

        The threads are daemons, so that whoever interrupts the program needn't wait for answers.
        """
        found = dict[int, Vectors]()
        failed = list[BaseException]()
        todo: Iterator[tuple[int, Sequence[str]]] = iter(enumerate(parts))
        taking = threading.Lock()

        def work() -> None:
            while not failed:
                with taking:
                    place, part = next(todo, (-1, ()))
                if place < 0:
                    return
                try:
                    found[place] = self._drive(embed(part, options, self._rules, timeout_s))
                except EmbedError as error:
                    failed.append(base.located(error, place * len(parts[0]), part))
                except BaseException as error:
                    failed.append(error)

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self._concurrency, len(parts)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            failed.append(error)
            raise
        if failed:
            raise failed[0]
        return [found[place] for place in range(len(parts))]
