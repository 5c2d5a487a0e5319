import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.autoscale.policy import Bounds, Decision, PolicyState, decide
from serve_app.config import PolicySettings
from serve_app.scheduler.replica_load import ReplicaLoad

CAPACITY, STARTUP_S = 1000.0, 8.0
SETTINGS = PolicySettings()


class Controller:
    """Calls the policy every second; replicas start at once."""

    def __init__(self, replicas: int, settings: PolicySettings = SETTINGS) -> None:
        self.target = self.running = replicas
        self.settings = settings
        self.bounds = Bounds(1, 100)
        self.state = PolicyState()
        self.now_s = 1000.0
        self.targets = list[int]()

    def step(self, reports: dict[str, ReplicaLoad]) -> Decision:
        self.now_s += 1
        decision, self.state = decide(
            reports,
            running=self.running,
            target=self.target,
            bounds=self.bounds,
            now_s=self.now_s,
            state=self.state,
            settings=self.settings,
        )
        self.target = decision.replicas
        self.targets.append(self.target)
        return decision

    def run(self, seconds: int, **load: float) -> Decision:
        for _ in range(seconds):
            decision = self.step(share(self.running, **load))
            self.running = self.target
        return decision


def share(replicas: int, **load: float) -> dict[str, ReplicaLoad]:
    """Returns reports of equal replicas, whose sum is the load."""
    sums = {name: value / replicas for name, value in load.items() if name != "oldest"}
    one = replace(
        ReplicaLoad(capacity_tokens_per_s=CAPACITY, startup_s=STARTUP_S),
        oldest_interactive_s=load.get("oldest", 0.0),
        **sums,
    )
    return {str(i): one for i in range(replicas)}


@pytest.mark.parametrize(
    ("running", "offered", "replicas"),
    [(1, 700, 1), (1, 900, 2), (3, 3000, 4), (30, 30_000, 39)],
)
def test_replicas_keep_up_with_arrivals_with_headroom(
    running: int, offered: float, replicas: int
) -> None:
    controller = Controller(running)
    controller.run(5, offered_interactive_tokens_per_s=offered)
    assert controller.target == replicas


def test_a_queue_starts_more_replicas_than_the_arrivals_need() -> None:
    controller = Controller(2)
    load = {"offered_interactive_tokens_per_s": 1500.0}
    controller.run(3, **load)
    assert controller.target == 2
    decision = controller.run(1, **load, queued_interactive_tokens=40_000)
    assert decision.replicas > 4
    assert "queued" in decision.reason


def test_a_step_raises_the_target_within_three_seconds() -> None:
    controller = Controller(3)
    controller.run(60, offered_interactive_tokens_per_s=2000)
    controller.run(3, offered_interactive_tokens_per_s=6000)
    assert controller.target >= 8


def test_a_single_extreme_second_changes_nothing() -> None:
    controller = Controller(3)
    controller.run(60, offered_interactive_tokens_per_s=2000)
    controller.run(1, offered_interactive_tokens_per_s=20_000)
    controller.run(30, offered_interactive_tokens_per_s=2000)
    assert controller.target == 3


def test_rising_arrivals_start_replicas_ahead_by_the_time_that_a_start_takes() -> None:
    def target(startup_s: float) -> int:
        controller = Controller(10)
        for second in range(300):
            offered = 2000 + 20.0 * second
            reports = share(controller.running, offered_interactive_tokens_per_s=offered)
            controller.step({k: replace(r, startup_s=startup_s) for k, r in reports.items()})
        return controller.target

    assert target(60.0) > target(1.0)


def test_texts_that_wait_too_long_start_a_replica_whatever_the_arrivals_say() -> None:
    controller = Controller(4)
    controller.run(20, offered_interactive_tokens_per_s=100)
    decision = controller.run(2, offered_interactive_tokens_per_s=100, oldest=0.8)
    assert decision.replicas == 5
    assert "target_queue_s" in decision.reason


def test_after_a_start_the_objective_waits_for_its_effect() -> None:
    controller = Controller(4)
    controller.run(20, offered_interactive_tokens_per_s=100)
    controller.run(int(STARTUP_S), offered_interactive_tokens_per_s=100, oldest=0.8)
    assert controller.target == 5
    controller.run(10, offered_interactive_tokens_per_s=100, oldest=0.8)
    assert controller.target == 6


def test_bulk_texts_scale_up_to_their_own_bound_only() -> None:
    settings = PolicySettings(max_bulk_replicas=3)
    bounded, free = Controller(1, settings), Controller(1)
    for controller in (bounded, free):
        controller.run(5, queued_bulk_tokens=1_000_000)
    assert (bounded.target, free.target) == (3, 17)  # a minute of 17 replicas


def test_bulk_texts_use_the_headroom_of_interactive_texts() -> None:
    controller = Controller(4)
    controller.run(5, offered_interactive_tokens_per_s=3000, queued_bulk_tokens=0.2 * 3000 * 0.9)
    assert controller.target == 4


def test_replicas_leave_one_at_a_time_after_a_delay() -> None:
    controller = Controller(10)
    controller.run(100, offered_interactive_tokens_per_s=7500)
    assert controller.target == 10
    controller.run(200, offered_interactive_tokens_per_s=700)
    targets = controller.targets[100:]
    assert targets[int(SETTINGS.downscale_delay_s) - 5] == 10
    assert targets[-1] == 1
    changes = [i for i in range(1, len(targets)) if targets[i] != targets[i - 1]]
    assert all(targets[i - 1] - targets[i] == 1 for i in changes)
    pauses = [b - a for a, b in pairwise(changes)]
    assert min(pauses) >= SETTINGS.downscale_interval_s


@pytest.mark.parametrize("offered", [1900.0, 2250.0, 2300.0, 2400.0, 3060.0])
@pytest.mark.parametrize("seed", range(5))
def test_noise_changes_the_target_at_most_once_in_ten_minutes(offered: float, seed: int) -> None:
    rng, controller = random.Random(seed), Controller(3)
    for _ in range(600):
        noisy = max(rng.gauss(offered, 0.1 * offered), 0)
        controller.run(1, offered_interactive_tokens_per_s=noisy)
    assert sum(a != b for a, b in pairwise(controller.targets)) <= 1


def test_the_bounds_hold() -> None:
    controller = Controller(2)
    controller.bounds = Bounds(2, 6)
    decision = controller.run(5, offered_interactive_tokens_per_s=50_000)
    assert controller.target == 6
    assert decision.reason.endswith("max_replicas is 6")
    controller.bounds = Bounds(2, 4)
    controller.run(2, offered_interactive_tokens_per_s=50_000)
    assert controller.target == 4
    controller.run(300)
    assert controller.target == 2


def test_no_more_replicas_are_asked_for_than_the_cluster_has_room_for() -> None:
    controller = Controller(2)
    controller.bounds = Bounds(1, 10, room=4)
    decision = controller.run(5, offered_interactive_tokens_per_s=50_000)
    assert controller.target == 4
    assert "10 replicas are needed, the cluster has room for 4" in decision.reason
    assert decision.decided_by == "bounds"


def test_a_cluster_that_lost_a_node_keeps_the_target_while_it_is_needed_and_not_longer() -> None:
    controller = Controller(6)
    controller.run(60, offered_interactive_tokens_per_s=4000)
    controller.bounds = Bounds(1, 10, room=4)
    reports = share(4, offered_interactive_tokens_per_s=4000)
    for _ in range(100):
        controller.running = 4  # two wait for resources
        decision = controller.step(reports)
    assert controller.target == 6
    assert "the cluster has room for 4" in decision.reason
    for _ in range(200):
        controller.running = min(4, controller.target)
        controller.step(share(controller.running, offered_interactive_tokens_per_s=100))
    assert controller.target == 1


def test_each_decision_says_what_every_term_asks_for() -> None:
    controller = Controller(2)
    decision = controller.run(5, offered_interactive_tokens_per_s=1500, queued_bulk_tokens=200_000)
    assert decision.decided_by == "bulk"
    assert decision.needs["bulk"] == decision.replicas > decision.needs["arrivals"] >= 2


LOADS = st.builds(
    ReplicaLoad,
    queued_interactive_tokens=st.floats(0, 1e6),
    queued_bulk_tokens=st.floats(0, 1e6),
    oldest_interactive_s=st.floats(0, 100),
    offered_interactive_tokens_per_s=st.floats(0, 1e5),
    offered_bulk_tokens_per_s=st.floats(0, 1e5),
    served_tokens_per_s=st.floats(0, 1e4),
    busy_share=st.floats(0, 1),
    capacity_tokens_per_s=st.just(CAPACITY) | st.just(0.0),
    startup_s=st.floats(0, 60),
)


@given(st.lists(LOADS, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_the_target_is_bounded_and_falls_by_one_at_most(
    loads: list[ReplicaLoad], missing: int, starting: int
) -> None:
    controller = Controller(len(loads) + missing)
    controller.target += starting
    for _ in range(100):
        before = controller.target
        controller.step({str(i): load for i, load in enumerate(loads)})
        assert 1 <= controller.target <= 100
        assert controller.target >= min(before - 1, 100)


@given(st.lists(LOADS, min_size=1, max_size=6), st.floats(1, 5))
def test_more_load_never_needs_fewer_replicas(loads: list[ReplicaLoad], factor: float) -> None:
    def target(scale: float) -> int:
        controller = Controller(len(loads))
        for _ in range(3):
            controller.step(
                {
                    str(i): replace(
                        load,
                        queued_interactive_tokens=load.queued_interactive_tokens * scale,
                        queued_bulk_tokens=load.queued_bulk_tokens * scale,
                        offered_interactive_tokens_per_s=load.offered_interactive_tokens_per_s
                        * scale,
                        served_tokens_per_s=CAPACITY,
                    )
                    for i, load in enumerate(loads)
                }
            )
        return controller.target

    assert target(factor) >= target(1.0)


@given(st.integers(1, 12))
def test_saturated_replicas_are_never_stopped(replicas: int) -> None:
    """Even if no text seems to arrive, as with counters that were reset."""
    controller = Controller(replicas)
    load = ReplicaLoad(busy_share=1, served_tokens_per_s=CAPACITY, capacity_tokens_per_s=CAPACITY)
    for _ in range(300):
        controller.step({str(i): load for i in range(replicas)})
    assert controller.target == replicas


def test_lost_reports_count_as_the_mean_of_the_others() -> None:
    controller = Controller(10)
    reports = share(10, offered_interactive_tokens_per_s=9000)
    controller.step(dict(list(reports.items())[:3]))
    assert controller.target == 12


def test_while_reports_are_lost_no_replica_leaves() -> None:
    controller = Controller(10)
    controller.run(100, offered_interactive_tokens_per_s=7000)
    assert controller.target == 10
    reports = share(10, offered_interactive_tokens_per_s=100)
    for _ in range(200):
        controller.step(dict(list(reports.items())[:7]))
    assert controller.target == 10


@pytest.mark.parametrize(("offered", "rises"), [(100.0, False), (4000.0, True)])
def test_a_caller_that_delays_decisions_gets_the_same_one_until_it_follows(
    offered: float, rises: bool
) -> None:
    """Ray asks ten times a second, and starts its delay again when a decision is the target."""
    controller = Controller(3)
    controller.run(25, offered_interactive_tokens_per_s=2000 if rises else 100)
    decisions = list[int]()
    for _ in range(200):
        controller.now_s += 0.1 - 1
        controller.step(share(3, offered_interactive_tokens_per_s=offered))
        decisions.append(controller.target)
        controller.target = 3
    late = set(decisions[100:])
    assert min(late) > 3 if rises else late == {2}


def test_without_any_report_the_target_stays() -> None:
    controller = Controller(7)
    for _ in range(300):
        assert controller.step({}).replicas == 7


def test_a_restarted_controller_keeps_the_target_until_it_knows_the_load() -> None:
    controller = Controller(8)
    controller.run(300, offered_interactive_tokens_per_s=6000)
    controller.state = PolicyState()
    controller.run(int(SETTINGS.downscale_delay_s) - 1, offered_interactive_tokens_per_s=0)
    assert controller.target == 8


def test_a_stuck_replica_is_replaced_once_and_not_scaled_for_again_and_again() -> None:
    controller = Controller(4)
    for age_s in range(300):
        controller.running = controller.target
        reports = share(controller.running - 1, offered_interactive_tokens_per_s=2900)
        reports["stuck"] = ReplicaLoad(
            queued_interactive_tokens=500,
            oldest_interactive_s=age_s,
            busy_share=1,
            capacity_tokens_per_s=CAPACITY,
        )
        controller.step(reports)
    assert controller.target == 5  # four that compute


@pytest.mark.parametrize(
    "lie",
    [
        {"capacity_tokens_per_s": 1e9},
        {"capacity_tokens_per_s": 1e-3},
        {"offered_interactive_tokens_per_s": float("nan")},
        {"offered_interactive_tokens_per_s": -1e9},
        {"busy_share": 77.0},
        {"startup_s": 1e9},
        {"queued_interactive_tokens": float("inf")},
    ],
)
def test_a_replica_with_wrong_values_moves_nothing(lie: dict[str, float]) -> None:
    controller = Controller(8)
    for _ in range(300):
        reports = share(8, offered_interactive_tokens_per_s=6000)
        reports["3"] = replace(reports["3"], **lie)
        controller.step(reports)
    assert controller.target == 8


ASLEEP_S = int(SETTINGS.scale_to_zero_after_s)


def may_sleep(settings: PolicySettings = SETTINGS) -> Controller:
    controller = Controller(1, settings)
    controller.bounds = Bounds(0, 10)
    return controller


def test_the_last_replica_leaves_once_no_text_has_come_for_long() -> None:
    controller = may_sleep()
    controller.run(60, offered_interactive_tokens_per_s=10)
    controller.run(ASLEEP_S - 2)
    assert controller.target == 1
    while controller.target:
        decision = controller.run(1)
    assert (decision.replicas, decision.reason) == (0, "no text for 300 s")
    assert controller.targets.count(1) <= 60 + ASLEEP_S + 1


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_any_text_keeps_the_last_replica(lane: str) -> None:
    controller = may_sleep()
    for second in range(5 * ASLEEP_S):
        controller.run(1, **{f"offered_{lane}_tokens_per_s": 1e-3 * (second % ASLEEP_S == 0)})
    assert controller.target == 1


@pytest.mark.parametrize(
    "held", ["queued_interactive_tokens", "queued_bulk_tokens", "served_tokens_per_s"]
)
def test_the_last_replica_never_leaves_with_a_text(held: str) -> None:
    controller = may_sleep()
    controller.run(5 * ASLEEP_S, **{held: 1.0})
    assert controller.target == 1


def test_the_last_replica_stays_while_it_does_not_report() -> None:
    controller = may_sleep()
    for _ in range(5 * ASLEEP_S):
        controller.step({})
    assert controller.target == 1


def test_several_replicas_leave_one_by_one_and_the_last_one_later() -> None:
    controller = may_sleep()
    controller.run(60, offered_interactive_tokens_per_s=3000)
    assert controller.target >= 4
    controller.run(2 * ASLEEP_S)
    changes = [(a, b) for a, b in pairwise(controller.targets) if b < a]
    assert all(a - b == 1 for a, b in changes)
    assert controller.target == 0


def test_a_deployment_that_sleeps_stays_asleep_and_starts_awake() -> None:
    controller = may_sleep()
    controller.run(ASLEEP_S + 5)
    assert controller.target == 0
    left = {"left": ReplicaLoad(capacity_tokens_per_s=CAPACITY)}
    for _ in range(5):
        assert controller.step(left).replicas == 0  # the last report of the replica that left
    assert controller.step({}).replicas == 0
    controller.target, controller.running = 1, 0  # Ray starts a replica for a request
    for _ in range(60):
        assert controller.step({}).replicas == 1
    controller.run(ASLEEP_S - 5)
    assert controller.target == 1


def test_standby_replicas_are_ready_before_the_load_comes() -> None:
    settings = PolicySettings(min_idle_replicas=2)
    controller = Controller(1, settings)
    controller.run(5)
    assert controller.target == 2
    for offered, replicas in [(500.0, 3), (3000.0, 6)]:
        controller.run(60, offered_interactive_tokens_per_s=offered)
        assert controller.target == replicas
    controller.run(300, offered_interactive_tokens_per_s=500)
    assert controller.target == 3


def test_standby_replicas_stay_within_the_bounds_and_do_not_add_up() -> None:
    controller = Controller(1, PolicySettings(min_idle_replicas=3))
    controller.bounds = Bounds(1, 5)
    for _ in range(300):  # the capacity isn't known
        controller.step({"0": ReplicaLoad()})
    assert controller.target == 4
    controller.run(60, offered_interactive_tokens_per_s=4000)
    assert controller.target == 5


def test_a_deployment_with_standby_replicas_never_sleeps() -> None:
    controller = may_sleep(PolicySettings(min_idle_replicas=1))
    controller.run(5 * ASLEEP_S)
    assert controller.target == 1


@pytest.mark.parametrize("seed", range(20))
def test_busy_replicas_stay_whatever_is_reported_lost_or_restarted(seed: int) -> None:
    rng = random.Random(seed)
    controller = Controller(rng.randint(1, 12))
    controller.bounds = Bounds(1, 12, room=rng.choice([None, 4, 12]))
    for _ in range(400):
        controller.running = rng.choice([controller.target, max(controller.target - 1, 1)])
        busy = rng.randint(0, controller.running)
        reports = {
            str(i): ReplicaLoad(
                queued_interactive_tokens=rng.expovariate(1 / 500),
                oldest_interactive_s=rng.choice([0, 0, 0.3, 2.0]),
                offered_interactive_tokens_per_s=rng.uniform(0, 1500),
                served_tokens_per_s=CAPACITY if i < busy else 0.0,
                busy_share=1.0 if i < busy else 0.1,
                capacity_tokens_per_s=CAPACITY,
                startup_s=STARTUP_S,
            )
            for i in range(controller.running)
        }
        if rng.random() < 0.1:  # a lie of a replica that isn't busy
            reports[str(controller.running - 1)] = ReplicaLoad(offered_bulk_tokens_per_s=1e18)
        if rng.random() < 0.1:
            reports.pop(rng.choice(list(reports)))
        if rng.random() < 0.02:
            controller.state = PolicyState()
        before = controller.target
        controller.step(reports)
        assert 1 <= controller.target <= 12
        assert controller.target >= min(busy, before)
        assert controller.target >= before - 1
