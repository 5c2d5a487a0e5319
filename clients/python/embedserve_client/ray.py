"""Vectors for Ray Data: from a column of texts to a column of vectors, without HTTP.

Batches of texts go to the service through its Serve handle, on the lane for bulk; vectors, float32
of shape (n, dim), come back and are put beside the texts. What waits for them holds no CPU: the
service's own replicas need those.

It needs Ray at the service's version: `pip install 'embedserve-client[ray]'`.
"""

import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from embedserve_client.errors import (
    EmbedError,
    HTTPError,
    NetworkError,
    NotRunning,
    Overloaded,
    ParseError,
    ServerError,
    SpaceMismatch,
    Timeout,
)
from embedserve_client.space import Space
from embedserve_client.vectors import Float32

if TYPE_CHECKING:
    from ray.data import Dataset

#: How long an application that is there may take to say which space it serves.
_CONNECT_S = 60.0
_FIRST_WAIT_S = 0.25
_MOST_WAIT_S = 8.0
#: Tries after a replica's death; texts that kill one must not kill all.
_DEATHS = 5
#: What is refused for its size is sent in halves, down to so many texts.
_SMALLEST_PART = 32
#: Statuses after which another try may succeed: too much to do, no replica, too late.
_PASSING = (429, 503, 504)


class Embedder:
    """Adds vectors to batches of texts, in a Ray Data pipeline or by hand.

    ds.map_batches(Embedder, fn_constructor_kwargs={"column": "text"}, batch_size=256, num_cpus=0,
                   compute=ray.data.ActorPoolStrategy(size=4))
    Embedder()({"text": np.array(["a text"])})["embedding"]  # float32, shape (1, dim)

    `embed_dataset` is the first of these with its checks made at once.
    """

    def __init__(
        self,
        column: str = "text",
        into: str = "embedding",
        *,
        app: str = "embedserve",
        input_type: str | None = None,
        model: str | None = None,
        use_cache: bool = True,
        timeout_s: float = 300.0,
        space: str | Space | None = None,
    ) -> None:
        """Finds the service on the Ray that this process belongs to.

        Args:
            column: holds the texts.
            into: the column for the vectors.
            app: the application's name in Serve.
            input_type: `query`, `document`, or another prompt of the model's.
            model: by one of its names; None: whatever is served.
            use_cache: False: all is computed anew, and nothing is kept.
            timeout_s: of each batch, its retries included.
            space: the space that vectors must be of; None: that of the service.

        Raises:
            NotRunning: there is no such application, or no Ray.
            SpaceMismatch: the service's vectors can't be compared with those of `space`.
            ValueError: one of these can't be.
            EmbedError: the service doesn't answer.
        """
        if not timeout_s > 0:
            raise ValueError("`timeout_s` must be above 0.")
        if column == into:
            raise ValueError(f"The vectors would take the place of the texts in {column!r}.")
        self._column, self._into, self._timeout_s = column, into, timeout_s
        self._options = {
            "model": model,
            "input_type": input_type,
            "lane": "bulk",
            "use_cache": use_cache,
        }
        handle = _handle(app)
        #: Of the vectors, as the service was when this was made.
        self.space = _space_of(handle, min(timeout_s, _CONNECT_S))
        wanted = Space.parse(space) if isinstance(space, str) else space
        if wanted is not None and not self.space.mixes_with(wanted):
            raise SpaceMismatch(
                f"{app!r} gives vectors of the space {self.space}, which can't be compared with "
                f"those of {wanted}. Embed everything anew, or serve the model of before."
            )
        self._embed = _method(handle, "embed")

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The batch with vectors in one more column, float32 of shape (n, dim), in order.

        Raises:
            ValueError: the batch has no such column.
            Timeout: the time ran out before the service took all of it.
            HTTPError: the service refused it, in words about places in this batch.
            EmbedError: whatever else kept the vectors from coming.
        """
        if self._column not in batch:
            raise ValueError(_no_column(self._column, list(batch)))
        texts = np.asarray(batch[self._column]).tolist()
        # A batch of none gets vectors of the right length, too: its column has to fit the others.
        vectors = self._vectors(texts) if texts else self._vectors(["none"])[:0]
        return {**batch, self._into: vectors}

    def _vectors(self, texts: list[Any]) -> Float32:
        end = time.monotonic() + self._timeout_s
        todo, found, tries, deaths = deque([texts]), list[Float32](), 0, 0
        while todo:
            part = todo.popleft()
            try:
                found.append(self._ask(part, end))
                tries = 0
                continue
            except EmbedError as error:
                deaths += isinstance(error, NetworkError)
                wait_s = _wait_s(error, tries)
                if wait_s is None or deaths > _DEATHS or time.monotonic() + wait_s >= end:
                    raise
                tries += 1
                todo.extendleft(reversed(_smaller(part, error)))
            time.sleep(wait_s)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _ask(self, texts: list[Any], end: float) -> Float32:
        """Vectors of texts, asked for once.

        Raises:
            EmbedError: what came in their place.
        """
        left_s = end - time.monotonic()
        if left_s <= 0:
            raise Timeout("The batch's time ran out.")
        vectors = np.asarray(_answer(self._embed.remote(texts, **self._options), left_s))
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(texts):
            raise ParseError(
                f"An array of {vectors.dtype} and of shape {vectors.shape} came for {len(texts)} "
                "texts. Does the application serve embeddings?"
            )
        return vectors


def embed_dataset(
    ds: "Dataset",
    column: str,
    *,
    into: str = "embedding",
    app: str = "embedserve",
    input_type: str | None = None,
    batch_size: int = 256,
    concurrency: int = 4,
    timeout_s: float = 300.0,
    space: str | Space | None = None,
) -> "Dataset":
    """A dataset with vectors beside its texts, in the order of its rows; computed as it is read.

    From here on the dataset's own execution keeps blocks in order, too
    (`ds.context.execution_options.preserve_order`).

    Args:
        ds: its rows; what reads them may need CPUs, what is added here doesn't.
        column: holds the texts.
        into: the column for the vectors, float32 of shape (dim,) in each row.
        app: the application's name in Serve.
        input_type: `query`, `document`, or another prompt of the model's.
        batch_size: texts in one call.
        concurrency: calls that are under way at a time.
        timeout_s: of each call, its retries included.
        space: the space that vectors must be of; None: that of the service.

    Raises:
        ValueError: there is no such column, or one of these can't be.
        NotRunning: there is no such application.
        SpaceMismatch: the service's vectors can't be compared with those of `space`.
    """
    if not (batch_size >= 1 and concurrency >= 1):
        raise ValueError("`batch_size` and `concurrency` must be 1 or more.")
    options = {
        "column": column,
        "into": into,
        "app": app,
        "input_type": input_type,
        "timeout_s": timeout_s,
    }
    here = Embedder(**options, space=space)  # type: ignore[arg-type]
    columns = ds.columns()
    if columns is not None and column not in columns:
        raise ValueError(_no_column(column, columns))
    ds.context.execution_options.preserve_order = True
    return ds.map_batches(
        Embedder,
        # What is checked here has to hold for each of the actors.
        fn_constructor_kwargs={**options, "space": here.space},
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=concurrency),
        num_cpus=0,  # they wait for the service, which may hold all CPUs
        udf_modifying_row_count=False,
    )


def _no_column(column: str, columns: Sequence[str]) -> str:
    return f"There is no column {column!r}. Name one of: {', '.join(map(repr, columns))}."


def _handle(app: str) -> Any:
    """The application's handle.

    Raises:
        NotRunning: there is none.
    """
    try:
        if not ray.is_initialized():
            ray.init(address="auto")  # Serve would start a Ray of its own, where nothing runs
        handle = serve.get_app_handle(app)
    except (ConnectionError, RayServeException) as error:
        raise NotRunning(
            f"No application {app!r} runs on this Ray: {error} Start it (`serve run "
            "serve_config.yaml`), or name another with `app=`."
        ) from error
    # Said here, since other defaults hold where a cluster was started with the service's switches:
    # a router in the loop of whoever asks would find none.
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def _method(handle: Any, name: str) -> Any:
    # By reference, through the object store: gRPC would need this process to be told of the
    # service's limit for messages, and is no faster for vectors of hundreds of texts.
    return handle.options(method_name=name, _by_reference=True)


def _space_of(handle: Any, timeout_s: float) -> Space:
    told = _answer(_method(handle, "space").remote(), timeout_s)
    try:
        return Space.parse(told)
    except (AttributeError, ValueError) as error:
        raise ParseError(f"The application told no space: {error}") from None


def _answer(call: Any, timeout_s: float) -> Any:
    """What a call through a handle gives.

    Raises:
        EmbedError: what it raises, in the client's words.
    """
    try:
        return call.result(timeout_s=timeout_s)
    except Exception as error:
        named = _named(error)
        if isinstance(named, Timeout):
            with suppress(Exception):  # nobody waits any more; whether it hears of it or not
                call.cancel()
        # What the service said says all; the stack of its replica would bury it in a job's log.
        is_told = isinstance(named, HTTPError) and named.server_code is not None
        raise named from (None if is_told else error)


def _named(error: BaseException) -> EmbedError:
    """An error of the service's, or of Ray's, in the client's words."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause  # what the replica raised, without the replica's stack in its message
    if isinstance(error, TimeoutError):
        return Timeout("The service didn't answer in time.")
    if hasattr(error, "retry_after_s"):
        overloaded = Overloaded(str(error), 429, server_code=getattr(error, "code", None))
        overloaded.retry_after_s = error.retry_after_s
        return overloaded
    if isinstance(error, RayServeException) and not isinstance(error, RayError):
        told = getattr(error, "message", error)  # some of them say nothing else
        return NotRunning(f"The application can't be asked: {told}")
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return NetworkError(f"The replica that was asked is gone: {error}")
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        return ServerError(f"The service failed: {error!r}", 500)
    return (ServerError if status >= 500 else HTTPError)(
        str(error),
        int(status),
        server_code=getattr(error, "code", None),
        param=getattr(error, "param", None),
    )


def _wait_s(error: EmbedError, tries: int) -> float | None:
    """Seconds before the next try, with full jitter; None: there is none."""
    passing = isinstance(error, HTTPError) and error.status in _PASSING
    if not passing and not isinstance(error, NetworkError):
        return None
    at_least_s = error.retry_after_s if isinstance(error, Overloaded) else None
    jitter_s = random.uniform(0, min(_MOST_WAIT_S, _FIRST_WAIT_S * 2 ** min(tries, 16)))
    return jitter_s + (at_least_s or 0.0)


def _smaller(texts: list[Any], error: EmbedError) -> list[list[Any]]:
    """What is sent in the place of texts that were refused.

    A large batch fits into a busy service's queue only when that is empty, and would wait for that
    behind all that are smaller.
    """
    too_large = isinstance(error, HTTPError) and error.status in (429, 504)
    if not too_large or len(texts) <= _SMALLEST_PART:
        return [texts]
    middle = len(texts) // 2
    return [texts[:middle], texts[middle:]]
