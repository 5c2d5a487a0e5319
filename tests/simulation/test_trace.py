import io

import numpy as np
import pytest

from serve_app.simulation.sample_traces import SAMPLE_TRACES
from serve_app.simulation.trace import Trace, read_trace, write_trace


def read(text: str) -> Trace:
    return read_trace(io.StringIO(text), "log")


def test_a_file_is_read_with_and_without_lane_and_header() -> None:
    trace = read("timestamp, tokens, lane\n105.5, 30\n100, 20, interactive\n101, 400, bulk\n")
    assert trace.name == "log"
    assert trace.arrival_s.tolist() == [0.0, 1.0, 5.5]
    assert trace.tokens.tolist() == [20, 400, 30]
    assert trace.is_bulk.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-11-28T10:00:00Z", "2026-11-28T10:00:02.500Z"),
        ("2026-11-28 10:00:00", "2026-11-28 10:00:02.5"),
        ("1764324000000", "1764324002500"),
        ("1764324000", "1764324002.5"),
    ],
)
def test_timestamps_of_logs_are_read(first: str, second: str) -> None:
    trace = read(f"\n{second},7\n\n{first},5,\n")
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 2.5])
    assert trace.tokens.tolist() == [5, 7]


@pytest.mark.parametrize("line", ["abc,3", "1", "1,0", "1,2,fast", "nan,3", "1,2.5"])
def test_an_invalid_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"log, line 2: .*timestamp, tokens"):
        read(f"0,10\n{line}\n")


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ValueError, match="no texts"):
        read("timestamp,tokens\n")


def test_a_written_trace_is_read_again() -> None:
    trace = Trace.from_arrays("log", [0, 1.25, 1.25, 9], [3, 4, 5, 6], [False, True, True, False])
    file = io.StringIO()
    write_trace(trace, file)
    again = read(file.getvalue())
    assert again.arrival_s.tolist() == trace.arrival_s.tolist()
    assert again.tokens.tolist() == trace.tokens.tolist()
    assert again.is_bulk.tolist() == trace.is_bulk.tolist()


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.5])
def test_a_scaled_trace_has_more_requests_of_the_same_sizes(factor: float) -> None:
    trace = SAMPLE_TRACES["bulk-at-night"](1)
    scaled = trace.scaled(factor, seed=1)
    assert scaled.request_starts.size == pytest.approx(factor * trace.request_starts.size, rel=0.03)
    assert scaled.tokens.mean() == pytest.approx(trace.tokens.mean(), rel=0.05)
    starts = scaled.request_starts
    sizes = np.diff(np.append(starts, scaled.tokens.size))[scaled.is_bulk[starts]]
    assert np.median(sizes) == 64


def test_texts_of_a_lane_that_arrive_together_are_one_request() -> None:
    trace = Trace.from_arrays("t", [0, 1, 1, 1, 2], [9] * 5, [False, True, False, True, False])
    assert trace.request_starts.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("name", SAMPLE_TRACES)
def test_sample_traces_depend_on_the_seed_only(name: str) -> None:
    first, second, other = (SAMPLE_TRACES[name](seed) for seed in (1, 1, 2))
    assert np.array_equal(first.arrival_s, second.arrival_s)
    assert np.array_equal(first.tokens, second.tokens)
    assert not np.array_equal(first.tokens, other.tokens)
    assert first.name == name
