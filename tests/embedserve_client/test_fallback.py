"""The local fallback while the service is unavailable, and the return to the service."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedserve_client import (
    HTTPError,
    LocalModel,
    NetworkError,
    RateLimitError,
    ServerError,
    SpaceMismatchError,
    Vectors,
)
from embedserve_client.fallback import Fallback
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo
from embedserve_client.wire import EmbedParams
from tests.embedserve_client.scripted_server import (
    SPACE,
    ScriptedServer,
    disconnect,
    error,
    vector,
    vectors,
)

UNREACHABLE = "http://127.0.0.1:9"
OTHER_SPACE = "f" * 16 + "-fp32"


class StubModel(LocalModel):
    """A local model without files."""

    def __init__(self, space: str = SPACE) -> None:
        super().__init__("stub")
        self._space = Space.parse(space)

    @property
    def space(self) -> Space:
        return self._space

    def embed(self, texts: Sequence[str], params: EmbedParams | None = None) -> Vectors:
        info = VectorInfo(self.space, "stub", "local")
        return Vectors([vector(text) for text in texts], info)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_vectors_are_local_while_the_service_is_unreachable(make_client: Any) -> None:
    result = make_client(UNREACHABLE, fallback="local", local_model=StubModel()).embed(["abc"])
    assert result.source == "local"
    assert str(result.space) == SPACE
    assert np.array_equal(result, np.array([vector("abc")], dtype=np.float32))


def test_fallback_none_raises(make_client: Any) -> None:
    with pytest.raises(NetworkError):
        make_client(UNREACHABLE, fallback="none", local_model=StubModel()).embed(["abc"])


def test_environment_enables_the_fallback(
    make_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDSERVE_FALLBACK", "local")
    assert make_client(UNREACHABLE, local_model=StubModel()).embed(["abc"]).source == "local"


def test_client_probes_the_service_and_returns_to_it(
    make_client: Any, server: ScriptedServer
) -> None:
    clock = Clock()
    client = make_client(server.url, fallback=Fallback(StubModel(), clock))
    assert client.embed(["a"]).source == "service"
    server.script = [disconnect] * 4
    assert client.embed(["a"]).source == "local"
    n = len(server.paths)
    assert client.embed(["a"]).source == "local"  # without a request
    assert len(server.paths) == n
    server.script, server.healthy = [], False
    clock.now += 1.5
    assert client.embed(["a"]).source == "local"
    assert server.paths[n:] == ["/health"]
    server.healthy = True
    clock.now += 1.0
    assert client.embed(["a"]).source == "local"  # the pause has doubled
    clock.now += 1.5
    assert client.embed(["a"]).source == "service"
    assert server.paths[n:] == ["/health", "/health", "/v1/embeddings"]


@pytest.mark.parametrize("fault", [error(500), error(503), disconnect])
def test_failing_service_counts_as_unavailable(
    make_client: Any, server: ScriptedServer, fault: Any
) -> None:
    server.script = [fault] * 4
    client = make_client(server.url, fallback="local", local_model=StubModel())
    assert client.embed(["a"]).source == "local"


@pytest.mark.parametrize(
    ("status", "error_class"), [(400, HTTPError), (401, HTTPError), (429, RateLimitError)]
)
def test_rejected_request_does_not_fall_back(
    make_client: Any, server: ScriptedServer, status: int, error_class: type[Exception]
) -> None:
    server.script = [error(status)] * 4
    with pytest.raises(error_class):
        make_client(server.url, fallback="local", local_model=StubModel()).embed(["a"])


def test_only_a_model_of_the_same_family_replaces_the_service(
    make_client: Any, server: ScriptedServer
) -> None:
    client = make_client(server.url, fallback="local", local_model=StubModel(OTHER_SPACE))
    assert client.embed(["a"]).source == "service"
    server.script = [disconnect] * 4
    with pytest.raises(SpaceMismatchError, match="can't replace it") as raised:
        client.embed(["a"])
    assert isinstance(raised.value.__context__, NetworkError)  # the reason for the fallback


def test_only_the_clients_model_is_replaced(make_client: Any, server: ScriptedServer) -> None:
    server.script = [error(503)] * 8
    client = make_client(server.url, model="m", fallback="local", local_model=StubModel())
    with pytest.raises(ServerError):
        client.embed(["a"], model="other")
    assert client.embed(["a"]).source == client.embed(["a"], model="m").source == "local"
    # A model that had comparable vectors before may be an alias.
    server.script = []
    client = make_client(server.url, fallback="local", local_model=StubModel())
    assert client.embed(["a"], model="alias").source == "service"
    server.script = [disconnect] * 4
    assert client.embed(["a"], model="alias").source == "local"


def test_the_health_of_the_clients_model_is_probed(
    make_client: Any, server: ScriptedServer
) -> None:
    clock = Clock()
    client = make_client(server.url, model="m", fallback=Fallback(StubModel(), clock))
    server.script = [disconnect] * 4
    assert client.embed(["a"]).source == "local"
    clock.now = 5.0
    assert client.embed(["a"]).source == "service"
    assert server.paths[-2:] == ["/health?model=m", "/v1/embeddings"]


def test_service_of_another_family_is_rejected_when_it_returns(
    make_client: Any, server: ScriptedServer
) -> None:
    clock = Clock()
    client = make_client(server.url, fallback=Fallback(StubModel(OTHER_SPACE), clock))
    server.script = [disconnect] * 4
    assert client.embed(["a"]).source == "local"
    clock.now = 5.0
    server.script = [vectors()]
    with pytest.raises(SpaceMismatchError):
        client.embed(["a"])


def test_float_precisions_of_a_family_are_comparable(
    make_client: Any, server: ScriptedServer
) -> None:
    family = SPACE.partition("-")[0]
    server.script = [vectors(f"{family}-bf16"), *[disconnect] * 4]
    client = make_client(server.url, fallback="local", local_model=StubModel())
    assert client.embed(["a"]).source == "service"
    result = client.embed(["a"])
    assert (result.source, str(result.space)) == ("local", SPACE)


def test_source_is_local_if_any_batch_is_local(make_client: Any, server: ScriptedServer) -> None:
    server.script = [vectors(), *[disconnect] * 4]
    client = make_client(
        server.url, batch_size=1, concurrency=1, fallback="local", local_model=StubModel()
    )
    result = client.embed(["a", "b", "c"])
    assert result.source == "local"
    assert np.array_equal(result, np.array([vector(t) for t in "abc"], dtype=np.float32))


def test_pause_is_bounded_and_only_one_caller_probes() -> None:
    clock = Clock()
    fallback = Fallback(StubModel(), clock)
    for _ in range(200):
        fallback.record_failure()
        clock.now += 31
        assert fallback.route() == "probe"
        assert fallback.route() == "local"  # a concurrent caller
    fallback.record_success()
    assert fallback.route() == "service"
