"""What an Embedder makes of what a Serve handle gives and raises; no Ray runs here."""

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
    NotRunning,
    Overloaded,
    ParseError,
    ServerError,
    SpaceMismatch,
    Timeout,
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


def in_a_replica(error: Exception) -> BaseException:
    """As Ray gives an error to whoever asked: with the replica's stack in its text."""
    stack = "Traceback (most recent call last): …"
    raised = RayTaskError("embed", stack, error)  # type: ignore[no-untyped-call]
    wrapped: BaseException = raised.as_instanceof_cause()  # type: ignore[no-untyped-call]
    assert type(wrapped) is not type(error)
    return wrapped


class FakeHandle:
    """An application's handle, whose calls fail as they are told to before they succeed."""

    is_initialized = False

    def __init__(self) -> None:
        self.faults: Iterator[Exception | object | None] = iter(())
        self.asked: list[tuple[list[str], Mapping[str, Any]]] = []
        self.options_given: list[dict[str, Any]] = []
        self.cancelled = 0
        self.timeouts_s: list[float] = []
        self.told = "f00d-bf16"

    def fail(self, *faults: object) -> None:
        self.faults = iter(faults)

    def _init(self, **options: Any) -> None:
        assert not self.is_initialized, "Ray refuses a second time."
        self.is_initialized = True
        self.options_given.append(options)

    def options(self, **options: Any) -> "Method":
        self.options_given.append(options)
        return Method(self, options["method_name"])


class Method:
    def __init__(self, handle: FakeHandle, name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *given: Any, **options: Any) -> "Call":
        if self._name == "embed":
            self._handle.asked.append((given[0], options))
        return Call(self._handle, self._name, *given)


class Call:
    def __init__(self, handle: FakeHandle, name: str, texts: Iterable[str] = ()) -> None:
        self._handle, self._name, self._texts = handle, name, texts

    def result(self, *, timeout_s: float) -> Any:
        self._handle.timeouts_s.append(timeout_s)
        fault = next(self._handle.faults, None)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            return fault
        if self._name == "space":
            return self._handle.told
        return np.stack([vector(text) for text in self._texts])

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
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each wait, which move a clock on and take no time."""
    waits = list[float]()

    class Clock:
        sleep = staticmethod(waits.append)

        @staticmethod
        def monotonic() -> float:
            return 1e6 + sum(waits)

    monkeypatch.setattr(embedserve_client.ray, "time", Clock)
    return waits


def embed(embedder: Embedder, texts: Iterable[Any] = TEXTS) -> Any:
    return embedder({"text": np.array(list(texts), dtype=object)})["embedding"].tolist()


def test_a_column_of_vectors_comes_beside_the_others(handle: FakeHandle) -> None:
    embedder = Embedder("words", "made", input_type="query", use_cache=False, model="m")
    batch = {"words": np.array(["a", "b"]), "n": np.array([1, 2])}
    made = embedder(batch)
    assert list(made) == ["words", "n", "made"]
    assert made["made"].dtype == np.float32
    assert made["made"].shape == (2, DIM)
    assert made["made"].tolist() == expected(["a", "b"])
    assert list(batch) == ["words", "n"]
    options = {"model": "m", "input_type": "query", "lane": "bulk", "use_cache": False}
    assert handle.asked == [(["a", "b"], options)]
    assert all(type(text) is str for text in handle.asked[0][0])


def test_the_handle_depends_on_no_environment(handle: FakeHandle) -> None:
    for _ in range(2):  # Ray gives one handle to a whole process
        Embedder()
    assert handle.options_given == [
        {"_run_router_in_separate_loop": True},
        *2
        * [
            {"method_name": "space", "_by_reference": True},
            {"method_name": "embed", "_by_reference": True},
        ],
    ]


def test_an_empty_batch_gets_vectors_of_the_right_length(handle: FakeHandle) -> None:
    made = Embedder()({"text": np.array([])})["embedding"]
    assert made.dtype == np.float32
    assert made.shape == (0, DIM)


@pytest.mark.parametrize(
    "fault",
    [
        service.Overloaded("Full.", 7),
        in_a_replica(service.Overloaded("Full.", 7)),
        in_a_replica(in_a_replica(service.Overloaded("Full.", 7))),  # type: ignore[arg-type]
        in_a_replica(service.QuotaExceeded("Spent.", 7)),
    ],
)
def test_an_overloaded_service_is_waited_for(
    handle: FakeHandle, waits: list[float], fault: Exception
) -> None:
    embedder = Embedder()
    handle.fail(fault, fault, fault)
    assert embed(embedder) == expected(TEXTS)
    assert len(waits) == 3
    assert all(7 < wait_s <= 7 + 0.25 * 2**i for i, wait_s in enumerate(waits))
    # What doesn't fit as a whole is sent in parts, and keeps its order.
    assert [len(texts) for texts, _ in handle.asked] == [100, 50, 25, 25, 25, 50]


def test_small_batches_are_not_cut(handle: FakeHandle, waits: list[float]) -> None:
    embedder = Embedder()
    handle.fail(service.Overloaded("Full.", 1))
    assert embed(embedder, TEXTS[:32]) == expected(TEXTS[:32])
    assert [len(texts) for texts, _ in handle.asked] == [32, 32]


def test_waits_end_with_the_batchs_time(handle: FakeHandle, waits: list[float]) -> None:
    embedder = Embedder(timeout_s=20)
    handle.fail(*itertools.repeat(service.Overloaded("Full.", 7), 99))
    with pytest.raises(Overloaded, match="Full") as raised:
        embed(embedder)
    assert raised.value.retry_after_s == 7
    assert raised.value.server_code == "rate_limit_exceeded"
    assert len(waits) == 2
    assert handle.timeouts_s[-1] == pytest.approx(20 - sum(waits))


@pytest.mark.parametrize(
    "fault",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", b"\1" * 16),
        in_a_replica(service.Unavailable("The replicas died.")),
        BackPressureError(1, 1),
        service.DeadlineExceeded("Late."),
    ],
)
def test_what_passes_is_tried_again(
    handle: FakeHandle, waits: list[float], fault: Exception
) -> None:
    embedder = Embedder()
    handle.fail(fault, None, fault)
    assert embed(embedder, TEXTS[:8]) == expected(TEXTS[:8])
    assert embed(embedder, TEXTS[:8]) == expected(TEXTS[:8])
    assert len(waits) == 2


def test_texts_that_kill_replicas_do_not_kill_all(handle: FakeHandle, waits: list[float]) -> None:
    embedder = Embedder()
    handle.fail(*(ActorDiedError() for _ in range(99)))
    with pytest.raises(NetworkError, match="is gone"):
        embed(embedder)
    assert len(handle.asked) == 6


@pytest.mark.parametrize(
    ("fault", "kind", "status", "words"),
    [
        (in_a_replica(service.EmptyInput("Text 3 is empty.", "texts")), HTTPError, 400, "Text 3"),
        (service.ModelNotFound("No such model.", "model"), HTTPError, 404, "No such model"),
        (in_a_replica(service.InferenceError("NaN.")), ServerError, 500, "NaN"),
        (in_a_replica(ZeroDivisionError("division")), ServerError, 500, "division"),
        (DeploymentUnavailableError(DeploymentID("a")), NotRunning, None, "failed to deploy"),
        (np.zeros((3, DIM)), ParseError, None, "float64"),
        (np.zeros((3, DIM), np.float32), ParseError, None, "for 100 texts"),
        ("words", ParseError, None, "serve embeddings"),
    ],
)
def test_other_errors_are_raised_at_once_in_the_clients_words(
    handle: FakeHandle,
    waits: list[float],
    fault: object,
    kind: type[EmbedError],
    status: int | None,
    words: str,
) -> None:
    embedder = Embedder()
    handle.fail(fault)
    with pytest.raises(kind, match=words) as raised:
        embed(embedder)
    assert type(raised.value) is kind
    assert "Traceback" not in str(raised.value)
    is_told = isinstance(raised.value, HTTPError) and raised.value.server_code is not None
    assert (raised.value.__cause__ is None) == (is_told or kind is ParseError)
    assert waits == []
    if isinstance(raised.value, HTTPError):
        assert raised.value.status == status
    again = pickle.loads(pickle.dumps(raised.value))  # as Ray takes it to the driver
    assert (type(again), str(again)) == (kind, str(raised.value))


def test_a_service_that_does_not_answer_is_left_alone(handle: FakeHandle) -> None:
    embedder = Embedder(timeout_s=3)
    for fault in (TimeoutError(), GetTimeoutError()):
        handle.fail(fault)
        with pytest.raises(Timeout):
            embed(embedder)
    assert handle.cancelled == 2
    assert 2 < handle.timeouts_s[-1] <= 3


def test_a_batch_without_the_column_is_told(handle: FakeHandle) -> None:
    with pytest.raises(ValueError, match=r"no column 'text'\. Name one of: 'words', 'n'"):
        Embedder()({"words": np.array(["a"]), "n": np.array([1])})


@pytest.mark.parametrize("same", [None, "f00d-bf16", "f00d-fp32", Space("f00d", "fp16")])
def test_it_knows_its_space(handle: FakeHandle, same: str | Space | None) -> None:
    assert Embedder(space=same).space == Space("f00d", "bf16")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Embedder(space="f00d-int8"), SpaceMismatch, "f00d-bf16"),
        (lambda: Embedder(space="beef-bf16"), SpaceMismatch, "f00d-bf16"),
        (lambda: Embedder(space="nonsense"), ValueError, "isn't a space"),
        (lambda: Embedder(app="another"), NotRunning, "'another'.*does not exist.*app="),
        (lambda: Embedder(timeout_s=0), ValueError, "timeout_s"),
        (lambda: Embedder("a", "a"), ValueError, "take the place"),
    ],
)
def test_what_cannot_be_is_refused(
    handle: FakeHandle, make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("told", ["nonsense", None])
def test_an_application_of_another_kind_is_told(handle: FakeHandle, told: Any) -> None:
    handle.told = told
    with pytest.raises(ParseError, match="no space"):
        Embedder()


def test_no_ray_is_started_where_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(address: str) -> None:
        assert address == "auto"
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(NotRunning, match="any running Ray"):
        Embedder()


class Rows:
    """A dataset, as far as it is asked."""

    def __init__(self, columns: list[str] | None) -> None:
        self._columns = columns

    def columns(self) -> list[str] | None:
        return self._columns


def test_a_dataset_is_looked_at_before_anything_runs(handle: FakeHandle) -> None:
    rows: Any = Rows(["words"])
    with pytest.raises(ValueError, match=r"no column 'text'\. Name one of: 'words'"):
        embed_dataset(rows, "text")
    with pytest.raises(ValueError, match="1 or more"):
        embed_dataset(rows, "words", batch_size=0)
    with pytest.raises(NotRunning):
        embed_dataset(rows, "words", app="another")
    with pytest.raises(SpaceMismatch):
        embed_dataset(rows, "words", space="beef-bf16")
