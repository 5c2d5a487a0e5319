"""The Ray Data embedder with a fake Serve handle; no Ray cluster runs."""

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

import embedserve_client.ray
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
from embedserve_client.ray import Embedder, embed_dataset
from embedserve_client.space import Space
from serve_app import errors as service
from serve_app.types import Float32

DIM = 4
TEXTS = [f"text {i}" for i in range(100)]


def vector(text: str) -> Float32:
    return np.full(DIM, sum(text.encode()), np.float32)


def expected(texts: Iterable[str]) -> Any:
    return np.stack([vector(text) for text in texts]).tolist()


def in_replica(error: Exception) -> BaseException:
    """Returns the error as Ray raises it, with the replica's traceback in its message."""
    traceback = "Traceback (most recent call last): …"
    raised = RayTaskError("embed", traceback, error)  # type: ignore[no-untyped-call]
    wrapped: BaseException = raised.as_instanceof_cause()  # type: ignore[no-untyped-call]
    assert type(wrapped) is not type(error)
    return wrapped


class FakeHandle:
    """An application's handle. Its calls raise or return the given faults before they succeed."""

    is_initialized = False

    def __init__(self) -> None:
        self.faults: Iterator[Exception | object | None] = iter(())
        self.calls: list[tuple[list[str], Mapping[str, Any]]] = []
        self.handle_options: list[dict[str, Any]] = []
        self.cancelled = 0
        self.timeouts_s: list[float] = []
        self.space: Any = "f00d-bf16"
        self.spaces: dict[str, str] = {}  #: of models that a call names

    def fail(self, *faults: object) -> None:
        self.faults = iter(faults)

    def _init(self, **options: Any) -> None:
        assert not self.is_initialized, "Ray allows one call."
        self.is_initialized = True
        self.handle_options.append(options)

    def options(self, **options: Any) -> "Method":
        self.handle_options.append(options)
        return Method(self, options["method_name"])


class Method:
    def __init__(self, handle: FakeHandle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any, **options: Any) -> "Call":
        if self._name == "embed":
            self._handle.calls.append((args[0], options))
        return Call(self._handle, self._name, *args)


class Call:
    def __init__(self, handle: FakeHandle, name: str, *arguments: Any) -> None:
        self._handle, self._name, self._arguments = handle, name, arguments

    def result(self, *, timeout_s: float) -> Any:
        self._handle.timeouts_s.append(timeout_s)
        fault = next(self._handle.faults, None)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            return fault
        if self._name == "space":
            (model,) = self._arguments
            return self._handle.spaces.get(model, self._handle.space)
        return np.stack([vector(text) for text in self._arguments[0]])

    def cancel(self) -> None:
        self._handle.cancelled += 1


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> FakeHandle:
    handle = FakeHandle()

    def get_app_handle(name: str) -> FakeHandle:
        if name != "embedserve":
            raise RayServeException(f"Application '{name}' does not exist.")
        return handle

    monkeypatch.setattr(serve, "get_app_handle", get_app_handle)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    return handle


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the seconds of each sleep, which only advance the clock."""
    delays = list[float]()

    class Clock:
        sleep = staticmethod(delays.append)

        @staticmethod
        def monotonic() -> float:
            return 1e6 + sum(delays)

    monkeypatch.setattr(embedserve_client.ray, "time", Clock)
    return delays


def embed(embedder: Embedder, texts: Iterable[Any] = TEXTS) -> Any:
    return embedder({"text": np.array(list(texts), dtype=object)})["embedding"].tolist()


def test_batch_gets_a_column_of_vectors(handle: FakeHandle) -> None:
    embedder = Embedder("words", "vector", input_type="query", use_cache=False, model="m")
    batch = {"words": np.array(["a", "b"]), "n": np.array([1, 2])}
    result = embedder(batch)
    assert list(result) == ["words", "n", "vector"]
    assert result["vector"].dtype == np.float32
    assert result["vector"].shape == (2, DIM)
    assert result["vector"].tolist() == expected(["a", "b"])
    assert list(batch) == ["words", "n"]
    options = {"model": "m", "input_type": "query", "lane": "bulk", "use_cache": False}
    options["space"] = "f00d-bf16"
    assert handle.calls == [(["a", "b"], options)]
    assert all(type(text) is str for text in handle.calls[0][0])


def test_handle_options_are_explicit(handle: FakeHandle) -> None:
    for _ in range(2):  # Ray caches the handle per process
        Embedder()
    assert handle.handle_options == [
        {"_run_router_in_separate_loop": True},
        *2
        * [
            {"method_name": "space", "_by_reference": True},
            {"method_name": "embed", "_by_reference": True},
        ],
    ]


def test_empty_batch_gets_vectors_of_the_right_dimension(handle: FakeHandle) -> None:
    vectors = Embedder()({"text": np.array([])})["embedding"]
    assert vectors.dtype == np.float32
    assert vectors.shape == (0, DIM)


@pytest.mark.parametrize(
    "fault",
    [
        service.Overloaded("Full.", 7),
        in_replica(service.Overloaded("Full.", 7)),
        in_replica(in_replica(service.Overloaded("Full.", 7))),  # type: ignore[arg-type]
        in_replica(service.QuotaExceeded("Spent.", 7)),
    ],
)
def test_overload_is_retried_with_halved_batches(
    handle: FakeHandle, delays: list[float], fault: Exception
) -> None:
    embedder = Embedder()
    handle.fail(fault, fault, fault)
    assert embed(embedder) == expected(TEXTS)
    assert len(delays) == 3
    assert all(7 < delay_s <= 7 + 0.25 * 2**i for i, delay_s in enumerate(delays))
    # The halves are sent in order.
    assert [len(texts) for texts, _ in handle.calls] == [100, 50, 25, 25, 25, 50]


def test_small_batches_are_not_split(handle: FakeHandle, delays: list[float]) -> None:
    embedder = Embedder()
    handle.fail(service.Overloaded("Full.", 1))
    assert embed(embedder, TEXTS[:32]) == expected(TEXTS[:32])
    assert [len(texts) for texts, _ in handle.calls] == [32, 32]


def test_retries_end_at_the_batch_timeout(handle: FakeHandle, delays: list[float]) -> None:
    embedder = Embedder(timeout_s=20)
    handle.fail(*itertools.repeat(service.Overloaded("Full.", 7), 99))
    with pytest.raises(RateLimitError, match="Full") as raised:
        embed(embedder)
    assert raised.value.retry_after_s == 7
    assert raised.value.server_code == "rate_limit_exceeded"
    assert len(delays) == 2
    assert handle.timeouts_s[-1] == pytest.approx(20 - sum(delays))


@pytest.mark.parametrize(
    "fault",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", b"\1" * 16),
        in_replica(service.Unavailable("The replicas died.")),
        BackPressureError(1, 1),
        service.DeadlineExceeded("Late."),
    ],
)
def test_transient_failures_are_retried(
    handle: FakeHandle, delays: list[float], fault: Exception
) -> None:
    embedder = Embedder()
    handle.fail(fault, None, fault)
    assert embed(embedder, TEXTS[:8]) == expected(TEXTS[:8])
    assert embed(embedder, TEXTS[:8]) == expected(TEXTS[:8])
    assert len(delays) == 2


def test_replica_deaths_bound_the_retries(handle: FakeHandle, delays: list[float]) -> None:
    embedder = Embedder()
    handle.fail(*(ActorDiedError() for _ in range(99)))
    with pytest.raises(NetworkError, match="replica died"):
        embed(embedder)
    assert len(handle.calls) == 6


@pytest.mark.parametrize(
    ("fault", "cls", "status", "message"),
    [
        (
            in_replica(service.EmptyInput("Text 3 is empty.", "texts")),
            HTTPError,
            400,
            "Text 3",
        ),
        (service.ModelNotFound("No such model.", "model"), HTTPError, 404, "No such model"),
        (in_replica(service.InferenceError("NaN.")), ServerError, 500, "NaN"),
        (in_replica(ZeroDivisionError("division")), ServerError, 500, "division"),
        (
            DeploymentUnavailableError(DeploymentID("a")),
            ServiceNotRunningError,
            None,
            "failed to deploy",
        ),
        (np.zeros((3, DIM)), ParseError, None, "float64"),
        (np.zeros((3, DIM), np.float32), ParseError, None, "for 100 texts"),
        ("words", ParseError, None, "serve embeddings"),
    ],
)
def test_other_failures_are_mapped_and_not_retried(
    handle: FakeHandle,
    delays: list[float],
    fault: object,
    cls: type[EmbedError],
    status: int | None,
    message: str,
) -> None:
    embedder = Embedder()
    handle.fail(fault)
    with pytest.raises(cls, match=message) as raised:
        embed(embedder)
    assert type(raised.value) is cls
    assert "Traceback" not in str(raised.value)
    is_service_error = isinstance(raised.value, HTTPError) and raised.value.server_code is not None
    assert (raised.value.__cause__ is None) == (is_service_error or cls is ParseError)
    assert delays == []
    if isinstance(raised.value, HTTPError):
        assert raised.value.status == status
    restored = pickle.loads(pickle.dumps(raised.value))  # Ray sends it to the driver
    assert (type(restored), str(restored)) == (cls, str(raised.value))


def test_timed_out_call_is_cancelled(handle: FakeHandle) -> None:
    embedder = Embedder(timeout_s=3)
    for fault in (TimeoutError(), GetTimeoutError()):
        handle.fail(fault)
        with pytest.raises(RequestTimeoutError):
            embed(embedder)
    assert handle.cancelled == 2
    assert 2 < handle.timeouts_s[-1] <= 3


def test_missing_column_is_named(handle: FakeHandle) -> None:
    with pytest.raises(ValueError, match=r"no column 'text'\. Use one of: 'words', 'n'"):
        Embedder()({"words": np.array(["a"]), "n": np.array([1])})


@pytest.mark.parametrize("expected_space", [None, "f00d-bf16", "f00d-fp32", Space("f00d", "fp16")])
def test_space_is_the_services(handle: FakeHandle, expected_space: str | Space | None) -> None:
    assert Embedder(expected_space=expected_space).space == Space("f00d", "bf16")


@pytest.mark.parametrize(
    ("create", "error", "message"),
    [
        (lambda: Embedder(expected_space="f00d-int8"), SpaceMismatchError, "f00d-bf16"),
        (lambda: Embedder(expected_space="beef-bf16"), SpaceMismatchError, "f00d-bf16"),
        (lambda: Embedder(expected_space="nonsense"), ValueError, "isn't a space"),
        (
            lambda: Embedder(app_name="another"),
            ServiceNotRunningError,
            "'another'.*app_name=",
        ),
        (lambda: Embedder(timeout_s=0), ValueError, "timeout_s"),
        (lambda: Embedder("a", "a"), ValueError, "overwrite the texts"),
    ],
)
def test_invalid_arguments_are_rejected(
    handle: FakeHandle, create: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        create()


def test_space_is_that_of_the_model(handle: FakeHandle) -> None:
    handle.spaces = {"m": "beef-fp32"}
    embedder = Embedder(model="m", expected_space="beef-bf16")
    assert embedder.space == Space("beef", "fp32")
    embedder({"text": np.array(["a"])})
    assert handle.calls[-1][1]["model"] == "m"


def test_model_of_another_space_ends_a_job(handle: FakeHandle, delays: list[float]) -> None:
    embedder = Embedder()
    handle.fail(None, service.SpaceConflict("Another space.", "x-embedding-space"))
    embed(embedder)
    with pytest.raises(SpaceConflictError, match="Another space"):
        embed(embedder)
    assert [options["space"] for _, options in handle.calls] == ["f00d-bf16"] * 2
    assert delays == []


@pytest.mark.parametrize("space", ["nonsense", None])
def test_application_without_a_valid_space_is_a_parse_error(handle: FakeHandle, space: Any) -> None:
    handle.space = space
    with pytest.raises(ParseError, match="no valid space"):
        Embedder()


def test_no_ray_cluster_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str) -> None:
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ServiceNotRunningError, match="any running Ray"):
        Embedder()


class FakeDataset:
    """A dataset with column names only."""

    def __init__(self, columns: list[str] | None) -> None:
        self._columns = columns

    def columns(self) -> list[str] | None:
        return self._columns


def test_dataset_arguments_are_checked_before_it_runs(handle: FakeHandle) -> None:
    rows: Any = FakeDataset(["words"])
    with pytest.raises(ValueError, match=r"no column 'text'\. Use one of: 'words'"):
        embed_dataset(rows, "text")
    with pytest.raises(ValueError, match="at least 1"):
        embed_dataset(rows, "words", batch_size=0)
    with pytest.raises(ServiceNotRunningError):
        embed_dataset(rows, "words", app_name="another")
    with pytest.raises(SpaceMismatchError):
        embed_dataset(rows, "words", expected_space="beef-bf16")
    handle.spaces = {"m": "beef-bf16"}
    with pytest.raises(SpaceMismatchError):
        embed_dataset(rows, "words", model="m", expected_space="f00d-bf16")
