"""When a deployment would compute texts, by what is on its way to its replicas."""

import pytest

from serve_app.cache.spill_over import Forecast
from serve_app.deployments.assigned_tokens import AssignedTokens
from serve_app.deployments.deployment_queues import DeploymentQueue
from serve_app.types import Lane, TextGroup


class Deployment:
    """A queue with what a router knows of two replicas."""

    def __init__(self, *, callers: int = 1, **tokens_per_s: float) -> None:
        self.speeds = tokens_per_s
        self.assigned = AssignedTokens[str]()
        self.queue = DeploymentQueue(lambda: callers)
        self.queue.follow(self.assigned, lambda: self.speeds)

    def wait_s(self, lane: Lane = "interactive") -> float:
        forecast = self.queue.forecast(lane, 0)
        assert forecast is not None
        return forecast.wait_s


def texts(tokens: int, lane: Lane = "interactive") -> tuple[TextGroup, ...]:
    """Returns groups of about so many tokens."""
    return (TextGroup(("text",) * (tokens // TextGroup(("text",)).estimated_tokens), lane=lane),)


def test_idle_replicas_compute_at_once() -> None:
    assert Deployment(a=100, b=100).queue.forecast("bulk", 50) == Forecast(0.0, 0.5)


def test_a_text_waits_for_the_replica_that_is_free_first() -> None:
    deployment = Deployment(a=100, b=200)
    deployment.assigned.assign("1", "a", "interactive", 300)
    assert deployment.wait_s() == 0
    deployment.assigned.assign("2", "b", "interactive", 300)
    assert deployment.wait_s() == pytest.approx(1.5)


def test_interactive_texts_wait_for_no_bulk() -> None:
    deployment = Deployment(a=100)
    deployment.assigned.assign("1", "a", "bulk", 1_000_000)
    with deployment.queue.sending(texts(600, "bulk")):
        assert deployment.wait_s("interactive") == 0
        assert deployment.wait_s("bulk") == pytest.approx(10_000)
    deployment.assigned.assign("2", "a", "interactive", 100)
    assert deployment.wait_s("interactive") == pytest.approx(1)
    assert deployment.wait_s("bulk") == pytest.approx(10_001)


def test_what_is_not_routed_yet_fills_the_shortest_queues() -> None:
    deployment = Deployment(a=100, b=100)
    deployment.assigned.assign("1", "a", "interactive", 300)
    sent = texts(300)
    with deployment.queue.sending(sent), deployment.queue.sending(texts(600)):
        # 300 tokens are the assigned ones. Of the other 600, b gets 450, and a 150.
        assert deployment.wait_s() == pytest.approx(4.5)
        deployment.assigned.assign("2", "b", "interactive", 600)
        assert deployment.wait_s() == pytest.approx(3)
    deployment.assigned.release("1")
    assert deployment.wait_s() == 0


def test_other_callers_send_as_much() -> None:
    deployment = Deployment(callers=3, a=100)
    with deployment.queue.sending(texts(300)):
        assert deployment.wait_s() == pytest.approx(9)
        deployment.assigned.assign("1", "a", "interactive", 300)
        assert deployment.wait_s() == pytest.approx(9)


def test_a_deployment_without_a_replica_has_no_forecast() -> None:
    assert Deployment().queue.forecast("interactive", 10) is None
    assert DeploymentQueue(lambda: 1).forecast("interactive", 10) is None


def test_replicas_that_cannot_be_reached_are_left_out() -> None:
    deployment = Deployment(a=100, b=100)
    deployment.assigned.assign("1", "a", "interactive", 300)
    deployment.assigned.avoid("b")
    assert deployment.wait_s() == pytest.approx(3)
    deployment.assigned.avoid("a")
    assert deployment.queue.forecast("interactive", 10) is None


def test_one_small_call_at_a_time_finds_out_an_unknown_speed() -> None:
    deployment = Deployment(a=0, b=0)
    assert deployment.queue.forecast("interactive", 10) == Forecast(0.0, 0.0)
    assert deployment.queue.forecast("bulk", 1_000_000) is None
    with deployment.queue.sending(texts(30)):
        assert deployment.queue.forecast("interactive", 10) is None
    deployment.speeds["a"] = 100
    with deployment.queue.sending(texts(300)):
        assert deployment.wait_s() == pytest.approx(1.5)
