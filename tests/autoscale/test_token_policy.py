from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.autoscale import TokenPolicy

NOW_S = 1000.0


def context(target: int, *, age_s: float = 0.0, **metrics: dict[str, float]) -> Any:
    raw = {
        name: {
            replica: [SimpleNamespace(timestamp=NOW_S - age_s, value=value)]
            for replica, value in values.items()
        }
        for name, values in metrics.items()
    }
    return SimpleNamespace(
        raw_metrics=raw,
        deployment_id="Embedder",
        deployment_name="Embedder",
        app_name="embedserve",
        current_num_replicas=target,
        running_replicas=[chr(ord("a") + i) for i in range(target)],
        target_num_replicas=target,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=10,
        total_num_requests=0,
        current_time=NOW_S,
        policy_state={},
    )


def test_it_sums_the_load_and_takes_the_median_of_the_speeds() -> None:
    ctx = context(
        2,
        offered_interactive_tokens_per_s={"a": 900.0, "b": 900.0},
        capacity_tokens_per_s={"a": 1000.0, "b": 1e9},
    )
    assert TokenPolicy(headroom=0.3)(ctx)[0] == 3


def test_a_replica_without_a_measured_speed_is_left_out_of_the_median() -> None:
    ctx = context(
        2,
        offered_interactive_tokens_per_s={"a": 1800.0, "new": 0.0},
        capacity_tokens_per_s={"a": 1000.0, "new": 0.0},
    )
    assert TokenPolicy(headroom=0)(ctx)[0] == 2


def test_the_state_is_passed_from_call_to_call() -> None:
    policy, ctx = (
        TokenPolicy(),
        context(
            1, offered_interactive_tokens_per_s={"a": 700.0}, capacity_tokens_per_s={"a": 1000.0}
        ),
    )
    _, ctx.policy_state = policy(ctx)
    ctx.current_time += 0.1  # Ray asks more often than replicas report
    assert policy(ctx) == (1, ctx.policy_state)


@pytest.mark.parametrize("metrics", [{}, {"capacity_tokens_per_s": {"a": 0.0}}])
def test_without_metrics_the_target_stays(metrics: Any) -> None:
    assert TokenPolicy()(context(3, **metrics))[0] == 3


def test_old_reports_do_not_count() -> None:
    ctx = context(
        2,
        age_s=60,
        offered_interactive_tokens_per_s={"a": 9000.0},
        capacity_tokens_per_s={"a": 1000.0},
    )
    assert TokenPolicy()(ctx)[0] == 2


def test_unknown_settings_keep_the_target_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    policy = TokenPolicy(headrom=0.3)
    assert "headrom: there is no such setting" in caplog.text
    assert policy(context(3, offered_interactive_tokens_per_s={"a": 1e6})) == (3, {})


def test_the_last_replica_stays_while_a_request_is_on_its_way() -> None:
    policy = TokenPolicy(scale_to_zero_after_s=1)
    ctx = context(1, offered_interactive_tokens_per_s={"a": 0.0})
    ctx.capacity_adjusted_min_replicas = 0
    targets = []
    for second in range(20):
        ctx.current_time = NOW_S + second
        for series in ctx.raw_metrics.values():
            series["a"][0].timestamp = ctx.current_time
        ctx.total_num_requests = 1 if second < 10 else 0
        replicas, ctx.policy_state = policy(ctx)
        targets.append(replicas)
    assert targets[:10] == [1] * 10
    assert targets[-1] == 0


def test_it_decides_once_every_replica_has_sent_a_new_report() -> None:
    policy, state = TokenPolicy(headroom=0.3), dict[str, Any]()

    def decide(now_s: float, written_s: dict[str, float], offered: float) -> int:
        ctx = context(2, capacity_tokens_per_s={"a": 1000.0, "b": 1000.0})
        ctx.raw_metrics["offered_interactive_tokens_per_s"] = {
            replica: [SimpleNamespace(timestamp=NOW_S + written_s[replica], value=offered)]
            for replica in ("a", "b")
        }
        for replica, samples in ctx.raw_metrics["capacity_tokens_per_s"].items():
            samples[0].timestamp = NOW_S + written_s[replica]
        ctx.current_time, ctx.policy_state = NOW_S + now_s, dict(state)
        replicas, new_state = policy(ctx)
        state.update(new_state)
        return replicas

    assert decide(0.0, {"a": 0.0, "b": 0.0}, 700) == 2
    assert decide(0.8, {"a": 0.7, "b": 0.0}, 5000) == 2  # `b` will report soon
    assert decide(1.0, {"a": 0.7, "b": 0.9}, 5000) == 2  # a new level needs two reports
    assert decide(2.0, {"a": 1.7, "b": 1.9}, 5000) == 10


def test_a_replica_that_has_just_started_adds_no_load_until_its_reports_are_lost() -> None:
    policy, state = TokenPolicy(headroom=0.3), dict[str, Any]()
    targets = []
    for second in range(12):
        ctx = context(
            2,
            age_s=-second,
            offered_interactive_tokens_per_s={"a": 1200.0},
            capacity_tokens_per_s={"a": 1000.0},
        )
        if second < 3:  # `b` is starting
            ctx.running_replicas, ctx.current_num_replicas = ["a"], 1
        ctx.current_time, ctx.policy_state = NOW_S + second, state
        replicas, state = policy(ctx)
        targets.append(replicas)
    assert targets[:8] == [2] * 8
    assert targets[-1] == 4  # it counts as one that has as much to do


def test_a_failure_keeps_the_target_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    policy, ctx = TokenPolicy(), context(3)
    ctx.raw_metrics = {"capacity_tokens_per_s": 7}
    for _ in range(5):
        assert policy(ctx) == (3, {})
    assert len(caplog.records) == 1
    assert "the target stays" in caplog.text
