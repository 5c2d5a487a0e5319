"""Embeddings for Ray Data: a column of texts → a column of vectors, without HTTP.

Batches of texts go to the service through its Serve handle, in the bulk lane; vectors (float32,
shape (n, dim)) come back. The actors that wait for them reserve no CPU, because the replicas of the
service need the CPUs.

It needs the service's version of Ray: `pip install 'embedserve-client[ray]'`.
"""

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
    ParseError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    ServiceNotRunningError,
    SpaceConflictError,
    SpaceMismatchError,
)
from embedserve_client.retry import RetryPolicy
from embedserve_client.space import Space
from embedserve_client.vectors import Float32
from embedserve_client.wire import SPACE_CONFLICT_CODE

if TYPE_CHECKING:
    from ray.data import Dataset

#: The time for the first call, which returns the space.
_CONNECT_TIMEOUT_S = 60.0
#: Delays only; the number of retries is bounded by the timeout of the batch.
_RETRY_POLICY = RetryPolicy()
#: Retries after the death of a replica. Texts that crash a replica must not crash all of them.
_MAX_REPLICA_DEATHS = 5
#: A batch that is rejected for its size is split in halves, but not below this size.
_MIN_SPLIT_SIZE = 32
#: Statuses of transient failures: overloaded, no replica, deadline exceeded.
_TRANSIENT_STATUSES = (429, 503, 504)


class Embedder:
    """Adds a column of vectors to batches of texts.

    ds.map_batches(Embedder, fn_constructor_kwargs={"column": "text"}, batch_size=256, num_cpus=0,
                   compute=ray.data.ActorPoolStrategy(size=4))
    Embedder()({"text": np.array(["a text"])})["embedding"]  # float32, shape (1, dim)

    `embed_dataset` does the former and validates the arguments before the pipeline runs.
    """

    def __init__(
        self,
        column: str = "text",
        output_column: str = "embedding",
        *,
        app_name: str = "embedserve",
        input_type: str | None = None,
        model: str | None = None,
        use_cache: bool = True,
        timeout_s: float = 300.0,
        expected_space: str | Space | None = None,
    ) -> None:
        """Connects to the service on the Ray cluster of this process.

        Args:
            column: the column with the texts.
            output_column: the column for the vectors.
            app_name: the name of the Serve application.
            input_type: `query`, `document`, or the name of another prompt of the model.
            model: a name or alias of the model; None: the service's default.
            use_cache: False: bypasses the cache, for reading and for writing.
            timeout_s: the timeout of each batch, retries included.
            expected_space: the space that the vectors must be comparable with; None: any.

        Raises:
            ServiceNotRunningError: there is no such application, or no Ray cluster.
            SpaceMismatchError: the service's vectors can't be compared with `expected_space`.
            ValueError: an argument is invalid.
            EmbedError: the service doesn't respond.
        """
        if not timeout_s > 0:
            raise ValueError("`timeout_s` must be positive.")
        if column == output_column:
            raise ValueError(f"The vectors would overwrite the texts in column {column!r}.")
        self._column, self._output_column, self._timeout_s = column, output_column, timeout_s
        self._options = {
            "model": model,
            "input_type": input_type,
            "lane": "bulk",
            "use_cache": use_cache,
        }
        handle = _app_handle(app_name)
        #: The space of the vectors.
        self.space = _fetch_space(handle, model, min(timeout_s, _CONNECT_TIMEOUT_S))
        if isinstance(expected_space, str):
            expected_space = Space.parse(expected_space)
        if expected_space is not None and not self.space.is_comparable_to(expected_space):
            raise SpaceMismatchError(
                f"{app_name!r} returns vectors in space {self.space}, which can't be compared with "
                f"{expected_space}. Embed everything again, or serve the earlier model."
            )
        # Pinned, so that a model that is replaced in the middle of a job ends it.
        self._options["space"] = str(self.space)
        self._embed = _method(handle, "embed")

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Returns the batch with a column of vectors, float32 of shape (n, dim), in order.

        Raises:
            ValueError: the batch has no such column.
            RequestTimeoutError: the timeout of the batch expired.
            SpaceConflictError: the application has been given a model of another space meanwhile.
            HTTPError: the service rejected a text; positions are relative to this batch.
            EmbedError: any other failure.
        """
        if self._column not in batch:
            raise ValueError(_missing_column_message(self._column, list(batch)))
        texts = np.asarray(batch[self._column]).tolist()
        # The vectors of an empty batch need the right dimension too, to match other batches.
        vectors = self._embed_texts(texts) if texts else self._embed_texts(["none"])[:0]
        return {**batch, self._output_column: vectors}

    def _embed_texts(self, texts: list[Any]) -> Float32:
        deadline = time.monotonic() + self._timeout_s
        pending, results, retries, deaths = deque([texts]), list[Float32](), 0, 0
        while pending:
            part = pending.popleft()
            try:
                results.append(self._call(part, deadline))
                retries = 0
                continue
            except EmbedError as error:
                deaths += isinstance(error, NetworkError)
                delay_s = _RETRY_POLICY.delay_s(retries, error)
                is_late = time.monotonic() + delay_s >= deadline
                if not _is_transient(error) or deaths > _MAX_REPLICA_DEATHS or is_late:
                    raise
                retries += 1
                pending.extendleft(reversed(_split_if_too_large(part, error)))
            time.sleep(delay_s)
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _call(self, texts: list[Any], deadline: float) -> Float32:
        """Embeds texts with one call through the handle."""
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise RequestTimeoutError("The batch timed out.")
        vectors = np.asarray(_result(self._embed.remote(texts, **self._options), remaining_s))
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(texts):
            raise ParseError(
                f"The application returned an array of {vectors.dtype} and shape {vectors.shape} "
                f"for {len(texts)} texts. Does it serve embeddings?"
            )
        return vectors


def embed_dataset(
    ds: "Dataset",
    column: str,
    *,
    output_column: str = "embedding",
    app_name: str = "embedserve",
    input_type: str | None = None,
    model: str | None = None,
    batch_size: int = 256,
    concurrency: int = 4,
    timeout_s: float = 300.0,
    expected_space: str | Space | None = None,
) -> "Dataset":
    """Returns the dataset with a column of vectors, in the order of its rows. Lazy.

    It sets `ds.context.execution_options.preserve_order`.

    Args:
        ds: the dataset. Reading it may need CPUs; this step reserves none.
        column: the column with the texts.
        output_column: the column for the vectors, float32 of shape (dim,) in each row.
        app_name: the name of the Serve application.
        input_type: `query`, `document`, or the name of another prompt of the model.
        model: a name or alias of the model; None: the service's default.
        batch_size: texts per call.
        concurrency: concurrent calls.
        timeout_s: the timeout of each call, retries included.
        expected_space: the space that the vectors must be comparable with; None: that of the first
            call. A model of another one that replaces it ends the job: `SpaceConflictError`.

    Raises:
        ValueError: there is no such column, or an argument is invalid.
        ServiceNotRunningError: there is no such application.
        SpaceMismatchError: the service's vectors can't be compared with `expected_space`.
    """
    if not (batch_size >= 1 and concurrency >= 1):
        raise ValueError("`batch_size` and `concurrency` must be at least 1.")
    options = {
        "column": column,
        "output_column": output_column,
        "app_name": app_name,
        "input_type": input_type,
        "model": model,
        "timeout_s": timeout_s,
    }
    embedder = Embedder(**options, expected_space=expected_space)  # type: ignore[arg-type]
    columns = ds.columns()
    if columns is not None and column not in columns:
        raise ValueError(_missing_column_message(column, columns))
    ds.context.execution_options.preserve_order = True
    return ds.map_batches(
        Embedder,
        # Every actor must get the space that was checked in this process.
        fn_constructor_kwargs={**options, "expected_space": embedder.space},
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=concurrency),
        num_cpus=0,  # the actors only wait for the service, whose replicas may use all CPUs
        udf_modifying_row_count=False,
    )


def _missing_column_message(column: str, columns: Sequence[str]) -> str:
    return f"There is no column {column!r}. Use one of: {', '.join(map(repr, columns))}."


def _app_handle(app_name: str) -> Any:
    """Returns the application's handle.

    Raises:
        ServiceNotRunningError: there is no such application, or no Ray cluster.
    """
    try:
        if not ray.is_initialized():
            ray.init(address="auto")  # else Serve would start a new, empty cluster
        handle = serve.get_app_handle(app_name)
    except (ConnectionError, RayServeException) as error:
        raise ServiceNotRunningError(
            f"There is no application {app_name!r} on this Ray cluster: {error} Start it (`serve "
            "run serve_config.yaml`), or pass another `app_name=`."
        ) from error
    # Explicit, because the service's environment changes Ray's default: the router would run in the
    # caller's event loop, and this process has none.
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle


def _method(handle: Any, name: str) -> Any:
    # Results by reference, through the object store: gRPC would need the service's message size
    # limit in this process too, and isn't faster for hundreds of vectors.
    return handle.options(method_name=name, _by_reference=True)


def _fetch_space(handle: Any, model: str | None, timeout_s: float) -> Space:
    space = _result(_method(handle, "space").remote(model), timeout_s)
    try:
        return Space.parse(space)
    except (AttributeError, ValueError) as error:
        raise ParseError(f"The application returned no valid space: {error}") from None


def _result(call: Any, timeout_s: float) -> Any:
    """Returns the result of a call through a handle.

    Raises:
        EmbedError: the call failed.
    """
    try:
        return call.result(timeout_s=timeout_s)
    except Exception as error:
        mapped = _map_error(error)
        if isinstance(mapped, RequestTimeoutError):
            with suppress(Exception):  # best effort: the call is abandoned either way
                call.cancel()
        # The message of the service suffices; the replica's traceback would only fill the log.
        is_service_error = isinstance(mapped, HTTPError) and mapped.server_code is not None
        raise mapped from (None if is_service_error else error)


def _map_error(error: BaseException) -> EmbedError:
    """Converts an error of the service or of Ray to the client's class."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause  # the replica's exception, without its traceback in the message
    if isinstance(error, TimeoutError):
        return RequestTimeoutError("The service didn't respond in time.")
    if hasattr(error, "retry_after_s"):
        rate_limit = RateLimitError(str(error), 429, server_code=getattr(error, "code", None))
        rate_limit.retry_after_s = error.retry_after_s
        return rate_limit
    if isinstance(error, RayServeException) and not isinstance(error, RayError):
        reason = getattr(error, "message", error)  # some classes have an empty str()
        return ServiceNotRunningError(f"The application can't be called: {reason}")
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return NetworkError(f"The replica died or is unreachable: {error}")
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        return ServerError(f"The service failed: {error!r}", 500)
    code = getattr(error, "code", None)
    cls = ServerError if status >= 500 else HTTPError
    if status == 409 and code == SPACE_CONFLICT_CODE:
        cls = SpaceConflictError
    return cls(
        str(error),
        int(status),
        server_code=code,
        param=getattr(error, "param", None),
    )


def _is_transient(error: EmbedError) -> bool:
    if isinstance(error, HTTPError):
        return error.status in _TRANSIENT_STATUSES
    return isinstance(error, NetworkError)


def _split_if_too_large(texts: list[Any], error: EmbedError) -> list[list[Any]]:
    """Returns the texts in halves if they were rejected because of overload.

    A large batch only fits into the queue of a busy service when the queue is almost empty, so
    smaller batches of other callers would overtake it forever.
    """
    is_overload = isinstance(error, HTTPError) and error.status in (429, 504)
    if not is_overload or len(texts) <= _MIN_SPLIT_SIZE:
        return [texts]
    middle = len(texts) // 2
    return [texts[:middle], texts[middle:]]
