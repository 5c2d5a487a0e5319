"""The capacity that a replica reports, learned from the batches that it runs."""

import json
import math

import pytest

from serve_app.config import EmbedderSettings
from serve_app.scheduler.batch_cost import BatchCost
from serve_app.scheduler.model_speed import ComputedBatch, ModelSpeed
from serve_app.scheduler.model_speeds import ModelSpeeds
from serve_app.simulation.service import SimulatedService
from tests.scheduler.fake_clock import FakeClock

COST = BatchCost(0.004, 0.00002)
SETTINGS = EmbedderSettings(batch_target_s=0.02)


def capacity(slowdown: float = 1.0, settings: EmbedderSettings = SETTINGS) -> float:
    """Returns what one stream computes in full batches without padding, as the simulator does."""
    cost = BatchCost(slowdown * COST.fixed_s, slowdown * COST.token_s)
    return SimulatedService(cost, settings, fill=1.0).capacity_tokens_per_s


CAPACITY = capacity()


def run(
    speed: ModelSpeed,
    padded_tokens: int,
    *,
    batches: int = 1,
    texts: int = 10,
    slowdown: float = 1.0,
    concurrency: float = 1.0,
    fill: float = 1.0,
    is_full: bool = False,
) -> None:
    seconds = slowdown * COST.seconds(padded_tokens)
    for _ in range(batches):
        tokens = round(fill * padded_tokens)
        speed.record(ComputedBatch(texts, tokens, padded_tokens, seconds, concurrency, is_full))


def train(speed: ModelSpeed, *, slowdown: float = 1.0, concurrency: float = 1.0) -> ModelSpeed:
    """Runs batches of all sizes, and full ones."""
    for padded_tokens in (50, 200, 800, 1600):
        run(speed, padded_tokens, batches=100, slowdown=slowdown, concurrency=concurrency)
    run(speed, 700, batches=10, slowdown=slowdown, concurrency=concurrency, is_full=True)
    return speed


def test_the_capacity_is_that_of_full_batches() -> None:
    assert ModelSpeed(1).capacity_tokens_per_s(SETTINGS) == 0  # unknown
    assert train(ModelSpeed(1)).capacity_tokens_per_s(SETTINGS) == pytest.approx(CAPACITY, rel=0.01)
    longer = EmbedderSettings(batch_target_s=0.04)
    expected = capacity(settings=longer)
    assert train(ModelSpeed(1)).capacity_tokens_per_s(longer) == pytest.approx(expected, rel=0.01)


def test_light_load_does_not_make_a_replica_look_slow() -> None:
    speed = train(ModelSpeed(1))
    run(speed, 12, batches=1000, texts=1)
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(CAPACITY, rel=0.02)


def test_padding_counts_against_the_capacity() -> None:
    speed = train(ModelSpeed(1))
    run(speed, 800, batches=1000, fill=0.7, is_full=True)
    run(speed, 12, batches=1000, texts=1)  # a single text has no padding
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(0.7 * CAPACITY, rel=0.02)


def test_batches_hold_a_limited_number_of_texts() -> None:
    speed = train(ModelSpeed(1))
    run(speed, 64 * 5, texts=64, batches=1000)
    expected = COST.capacity(SETTINGS.max_batch_texts * 5)
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(expected, rel=0.02)


def test_waiting_for_the_cores_is_not_taken_for_a_small_capacity() -> None:
    busy_machine = BatchCost(0.018, 0.00002)  # a batch waits for nearly the whole target
    speed = ModelSpeed(1)
    for padded_tokens in (10, 400, 800, 1600):
        for _ in range(10):
            seconds = busy_machine.seconds(padded_tokens)
            batch = ComputedBatch(10, padded_tokens, padded_tokens, seconds, is_full=False)
            speed.record(batch)
    at_target = busy_machine.capacity(busy_machine.tokens_within(SETTINGS.batch_target_s))
    assert speed.capacity_tokens_per_s(SETTINGS) > 3 * at_target


def test_small_batches_alone_say_little_about_large_ones() -> None:
    speed = ModelSpeed(1)
    for padded_tokens in (10, 20):  # by chance, a larger batch takes as long as a smaller one
        for _ in range(10):
            speed.record(ComputedBatch(1, padded_tokens, padded_tokens, 0.004))
    assert speed.capacity_tokens_per_s(SETTINGS) <= 4 * 20 / 0.004


@pytest.mark.parametrize("slowdown", [1.0, 1.4, 2.0], ids=["cores of their own", "HT", "shared"])
def test_the_capacity_is_that_of_all_streams(slowdown: float) -> None:
    speed = train(ModelSpeed(2), slowdown=slowdown, concurrency=2)
    expected = pytest.approx(2 * capacity(slowdown), rel=0.02)
    assert speed.capacity_tokens_per_s(SETTINGS) == expected
    for padded_tokens in (12, 1600):  # one stream runs alone from now on
        run(speed, padded_tokens, batches=1000)
    assert speed.capacity_tokens_per_s(SETTINGS) == expected


def test_before_all_streams_ran_they_are_taken_not_to_slow_each_other() -> None:
    speed = train(ModelSpeed(2))
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(2 * CAPACITY, rel=0.02)


def test_batches_of_other_models_do_not_make_a_model_look_slow() -> None:
    speed = train(ModelSpeed(1), slowdown=2.0, concurrency=2.0)
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(CAPACITY, rel=0.02)


def test_a_restored_speed_is_known_at_once_and_follows_new_batches() -> None:
    speed = ModelSpeed(2)
    speed.restore(json.loads(json.dumps(train(ModelSpeed(2), concurrency=2).state())))
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(2 * CAPACITY, rel=0.02)
    for _ in range(4):
        train(speed, slowdown=1.5, concurrency=2)
    assert speed.capacity_tokens_per_s(SETTINGS) == pytest.approx(2 * capacity(1.5), rel=0.02)


MEAN = [5.0, 100.0, 0.01, 0.1]
SUMS = {"texts": [1, 1], "full": [1, 1, 1]}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"fits": [], **SUMS},
        {"fits": {"one": [MEAN]}, **SUMS},
        {"fits": {"1": [MEAN[:3]]}, **SUMS},
        {"fits": {"1": [["a", *MEAN[1:]]]}, **SUMS},
        {"fits": {"1": [[math.nan, *MEAN[1:]]]}, **SUMS},
        {"fits": {"1": [[5.0, 0.0, 0.01, 0.1]]}, **SUMS},
        {"fits": {"1": [[5.0, 100.0, -0.01, 0.1]]}, **SUMS},
        {"fits": {"1": 7}, **SUMS},
        {"fits": {"1": [MEAN]}, "texts": [1, math.inf], "full": [1, 1, 1]},
        {"fits": {"1": [MEAN]}, "texts": [1, 1], "full": [1, 2, 1]},
        {"fits": {"1": [MEAN]}, "texts": None, "full": [1, 1, 1]},
        {"fits": {"1": [MEAN]}, "texts": [1], "full": [1, 1, 1]},
    ],
)
def test_impossible_states_are_not_restored(state: dict[str, object]) -> None:
    speed = ModelSpeed(1)
    with pytest.raises(ValueError, match=r".+"):
        speed.restore(state)
    assert speed.capacity_tokens_per_s(SETTINGS) == 0


def test_the_capacity_of_a_process_weighs_models_by_what_they_served() -> None:
    clock = FakeClock()
    speeds = ModelSpeeds(clock)
    assert speeds.capacity_tokens_per_s(SETTINGS) == 0

    def serve(model: str, seconds: float, batches: int) -> None:
        for tokens in (100, 1000):
            for _ in range(batches):
                batch = ComputedBatch(10, tokens, tokens, seconds * tokens)
                speeds.record(model, 1, batch)

    serve("fast", 1e-5, 10)
    serve("slow", 4e-5, 10)
    alone = speeds.capacities(SETTINGS)
    assert alone == {"fast": pytest.approx(1e5, rel=0.01), "slow": pytest.approx(2.5e4, rel=0.01)}
    # Of each 2 tokens, one takes 10 µs and one 40 µs.
    assert speeds.capacity_tokens_per_s(SETTINGS) == pytest.approx(40_000, rel=0.01)
    clock.now_s = 600
    assert speeds.capacity_tokens_per_s(SETTINGS) == pytest.approx(40_000, rel=0.01)  # idle
    serve("fast", 1e-5, 10)
    assert speeds.capacity_tokens_per_s(SETTINGS) == pytest.approx(1e5, rel=0.01)


def test_a_process_that_has_served_nothing_knows_the_restored_speeds() -> None:
    speeds = ModelSpeeds()
    speeds.model("a", 1).restore(train(ModelSpeed(1)).state())
    speeds.model("b", 1)
    assert speeds.capacity_tokens_per_s(SETTINGS) == pytest.approx(CAPACITY, rel=0.02)
