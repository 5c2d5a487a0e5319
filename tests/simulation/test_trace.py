from pathlib import Path

import numpy as np
import pytest

from serve_app.simulation.sample_traces import SAMPLE_TRACES
from serve_app.simulation.trace import Trace, read_trace


def test_a_file_is_read_with_and_without_lane_and_header(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("timestamp, tokens, lane\n105.5, 30\n100, 20, interactive\n101, 400, bulk\n")
    trace = read_trace(path)
    assert trace.name == "log"
    assert trace.arrival_s.tolist() == [0.0, 1.0, 5.5]
    assert trace.tokens.tolist() == [20, 400, 30]
    assert trace.is_bulk.tolist() == [False, True, False]


@pytest.mark.parametrize("line", ["abc,3", "1", "1,0", "1,2,fast", "nan,3", "1,2.5"])
def test_an_invalid_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"0,10\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2: .*timestamp, tokens"):
        read_trace(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("timestamp,tokens\n")
    with pytest.raises(ValueError, match="no texts"):
        read_trace(path)


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
