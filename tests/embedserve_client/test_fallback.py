"""Computing in this process while the service is away, and going back to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from embedserve_client import (
    HTTPError,
    LocalModel,
    NetworkError,
    Overloaded,
    SpaceMismatch,
    Vectors,
)
from embedserve_client.fallback import Fallback
from embedserve_client.space import Space
from embedserve_client.vectors import About
from embedserve_client.wire import Options
from tests.embedserve_client.scripted import SPACE, Scripted, hang_up, refuse, vector, vectors

AWAY = "http://127.0.0.1:9"
OTHER = "f" * 16 + "-fp32"


class Stub(LocalModel):
    """A model of a space, without one."""

    def __init__(self, space: str = SPACE) -> None:
        super().__init__("stub")
        self._space = Space.parse(space)

    @property
    def space(self) -> Space:
        return self._space

    def embed(self, texts: Sequence[str], options: Options) -> Vectors:
        return Vectors([vector(text) for text in texts], About(self.space, "stub", "local"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_vectors_come_from_here_while_the_service_is_away(made: Any) -> None:
    found = made(AWAY, fallback="local", local_model=Stub()).embed(["abc"])
    assert found.source == "local"
    assert str(found.space) == SPACE
    assert np.array_equal(found, np.array([vector("abc")], dtype=np.float32))


def test_without_a_fall_back_there_is_none(made: Any) -> None:
    with pytest.raises(NetworkError):
        made(AWAY, fallback="none", local_model=Stub()).embed(["abc"])


def test_the_environment_switches_it(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSERVE_FALLBACK", "local")
    assert made(AWAY, local_model=Stub()).embed(["abc"]).source == "local"


def test_the_service_is_asked_again_and_gone_back_to(made: Any, server: Scripted) -> None:
    client = made(server.url, fallback="local", local_model=Stub())
    clock = client.client.fallback._now = Clock()
    assert client.embed(["a"]).source == "service"
    server.script = [hang_up] * 4
    assert client.embed(["a"]).source == "local"
    tried = len(server.asked)
    assert client.embed(["a"]).source == "local"  # it isn't asked each time
    assert len(server.asked) == tried
    server.script, server.healthy = [], False
    clock.now += 1.5
    assert client.embed(["a"]).source == "local"
    assert server.asked[tried:] == ["/health"]
    server.healthy = True
    clock.now += 1.0
    assert client.embed(["a"]).source == "local"  # the pause has become longer
    clock.now += 1.5
    assert client.embed(["a"]).source == "service"
    assert server.asked[tried:] == ["/health", "/health", "/v1/embeddings"]


@pytest.mark.parametrize("fault", [refuse(500), refuse(503), hang_up])
def test_a_service_that_fails_is_away(made: Any, server: Scripted, fault: Any) -> None:
    server.script = [fault] * 4
    assert made(server.url, fallback="local", local_model=Stub()).embed(["a"]).source == "local"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, HTTPError), (401, HTTPError), (429, Overloaded)]
)
def test_a_service_that_refuses_is_there(
    made: Any, server: Scripted, status: int, kind: type[Exception]
) -> None:
    server.script = [refuse(status)] * 4
    with pytest.raises(kind):
        made(server.url, fallback="local", local_model=Stub()).embed(["a"])


def test_only_a_model_of_the_same_family_stands_in(made: Any, server: Scripted) -> None:
    client = made(server.url, fallback="local", local_model=Stub(OTHER))
    assert client.embed(["a"]).source == "service"
    server.script = [hang_up] * 4
    with pytest.raises(SpaceMismatch, match="can't stand in") as raised:
        client.embed(["a"])
    assert isinstance(raised.value.__context__, NetworkError)  # what it was for


def test_a_service_of_another_family_is_refused_when_it_is_back(
    made: Any, server: Scripted
) -> None:
    client = made(server.url, fallback="local", local_model=Stub(OTHER))
    client.client.fallback._now = Clock()
    server.script = [hang_up] * 4
    assert client.embed(["a"]).source == "local"
    client.client.fallback._now.now = 5.0
    server.script = [vectors()]
    with pytest.raises(SpaceMismatch):
        client.embed(["a"])


def test_two_float_precisions_of_a_family_meet(made: Any, server: Scripted) -> None:
    family = SPACE.partition("-")[0]
    server.script = [vectors(f"{family}-bf16"), *[hang_up] * 4]
    client = made(server.url, fallback="local", local_model=Stub())
    assert client.embed(["a"]).source == "service"
    found = client.embed(["a"])
    assert (found.source, str(found.space)) == ("local", SPACE)


def test_parts_of_a_long_list_may_come_from_both_and_that_is_told(
    made: Any, server: Scripted
) -> None:
    server.script = [vectors(), *[hang_up] * 4]
    client = made(server.url, batch_size=1, concurrency=1, fallback="local", local_model=Stub())
    found = client.embed(["a", "b", "c"])
    assert found.source == "local"
    assert np.array_equal(found, np.array([vector(t) for t in "abc"], dtype=np.float32))


def test_the_pause_is_bounded_and_one_caller_looks() -> None:
    clock = Clock()
    fallback = Fallback(Stub(), clock)
    for _ in range(200):
        fallback.lost()
        clock.now += 31
        assert fallback.route() == "probe"
        assert fallback.route() == "local"  # another caller, meanwhile
    fallback.back()
    assert fallback.route() == "service"
