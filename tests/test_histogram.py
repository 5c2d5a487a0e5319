import pytest

from serve_app.histogram import Histogram
from serve_app.meter import Meter
from serve_app.metrics import BATCH_SIZE, QUEUE_DURATION, TEXT_LENGTH


def test_a_value_is_in_each_bucket_whose_bound_it_does_not_exceed() -> None:
    histogram = Histogram((1, 2.5, 10))
    for value in (0, 1, 1.5, 2.5, 3, 1000):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.5", 4), ("10.0", 5), ("+Inf", 6)]
    assert (histogram.count, histogram.sum) == (6, 1008)


def test_an_empty_histogram_has_all_its_buckets() -> None:
    assert Histogram((0.001, 1)).buckets() == [("0.001", 0), ("1.0", 0), ("+Inf", 0)]


def test_a_meter_has_the_histograms_of_all_models_by_their_tags() -> None:
    meter = Meter()
    meter.observe(BATCH_SIZE, 3, "a")
    meter.for_model("b").observe(QUEUE_DURATION, 0.5, "bulk")
    meter.for_model("b").observe(QUEUE_DURATION, 1.5, "bulk")
    meter.observe_all(TEXT_LENGTH, [5, 7], "a")
    histograms = {key: (h.count, h.sum) for key, h in meter.histograms().items()}
    assert histograms == {
        (BATCH_SIZE, ("a",)): (1, 3),
        (QUEUE_DURATION, ("bulk", "b")): (2, 2.0),
        (TEXT_LENGTH, ("a",)): (2, 12),
    }


@pytest.mark.parametrize("drain", [False, True])
def test_histograms_are_counts_since_the_start(drain: bool) -> None:
    meter = Meter()
    for _ in range(2):
        meter.observe(BATCH_SIZE, 3, "a")
        if drain:
            meter.drain()
            meter.reset()
    assert meter.histograms()[BATCH_SIZE, ("a",)].count == 2
