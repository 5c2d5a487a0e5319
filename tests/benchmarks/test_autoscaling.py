"""The recording of a trace on Ray, and its comparison with the simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from benchmarks.autoscaling import forecast, recorded_trace, report
from benchmarks.replica_history import ReplicaHistory
from benchmarks.trace_player import play
from tests.benchmarks.test_load import serving

RECORD = {
    "trace": "spike",
    "topology": "separate",
    "max_replicas": 6,
    "batch_cost": {"fixed_s": 0.015, "token_s": 0.0006},
    "batch_target_s": 0.1,
    "autoscaling": {"policy": {"policy_kwargs": {"headroom": 0.3}}},
    "startup_s": [[8.0, 7.0, 9.0], [], [10.0]],
    "lone_waiting_s": 0.01,
    "changes": [[42.0, 2, "2,000 tokens/s arrive"], [44.0, 6, "5,000 tokens/s arrive"]],
    "client_lag_p99_ms": 1.0,
    "failed": 0,
}


async def test_a_player_sends_each_text_once_and_reads_the_duration_of_its_batch() -> None:
    texts = list[str]()

    async def respond(body: bytes) -> bytes:
        (text,) = orjson.loads(body)["input"]
        texts.append(text)
        if len(text.split()) == 7:
            return b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
        return (
            b"HTTP/1.1 200 OK\r\nServer-Timing: queue;dur=1.00, infer;dur=2.50, total;dur=9\r\n"
            b"content-length: 2\r\n\r\n{}"
        )

    async with serving(respond) as target:
        playback = await play([0, 0.01, 0.02, 0.02], [3, 7, 5, 5], target)
    assert sorted(len(text.split()) for text in texts) == [3, 5, 5, 7]
    assert len({*texts}) == 4
    assert playback.failures == ((0.01, "503 busy"),)
    assert np.isnan(playback.waiting_s).tolist() == [False, True, False, False]
    assert playback.inference_s[[0, 2, 3]].tolist() == [0.0025] * 3
    assert playback.queue_s[[0, 2, 3]].tolist() == [0.001] * 3
    np.testing.assert_allclose(
        playback.waiting_s[[0, 2, 3]], playback.latency_s[[0, 2, 3]] - 0.0025
    )


def test_a_history_has_the_replicas_of_each_second_and_their_start_up_times() -> None:
    def replica(name: str, state: str, start_s: float) -> dict[str, Any]:
        return {"replica_id": name, "state": state, "start_time_s": start_s}

    history = ReplicaHistory()
    first = replica("a", "RUNNING", 50)
    history.add({"replicas": [first], "target_num_replicas": 1}, 100)
    starting = [first, replica("b", "STARTING", 101), replica("c", "STARTING", 101.1)]
    history.add({"replicas": starting, "target_num_replicas": 3}, 101)
    history.add({"replicas": starting, "target_num_replicas": 3}, 103)
    second = replica("c", "RUNNING", 101.1)
    history.add({"replicas": [*starting[:2], second], "target_num_replicas": 3}, 104)
    third = replica("b", "RUNNING", 101)
    history.add({"replicas": [first, second, third], "target_num_replicas": 3}, 105)
    history.add({"replicas": [first], "target_num_replicas": 1}, 106)
    later = replica("d", "RUNNING", 106)
    history.add({"replicas": [first, later], "target_num_replicas": 2}, 108)
    # The first one of two that start together, one that starts alone; the second of the two.
    assert history.startup_s == [[pytest.approx(2.4), 1.0], [3.5]]
    running, target = history.by_second(started_s=100, seconds=5)
    assert running.tolist() == [1, 1, 1, 2, 3]
    assert target.tolist() == [3, 3, 3, 3, 3]


def test_a_history_has_how_long_haproxy_takes_to_send_to_new_replicas() -> None:
    history = ReplicaHistory()
    replicas = [{"replica_id": n, "state": "RUNNING", "start_time_s": 100} for n in "abc"]
    for second, (running, routed) in enumerate([(1, 1), (2, 1), (2, None), (3, 2), (3, 3), (1, 1)]):
        deployment = {"replicas": replicas[:running], "target_num_replicas": 3}
        history.add(deployment, 100 + second, routed)
    assert history.reload_s == [2.0, 1.0]


def test_the_report_compares_a_record_with_its_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = forecast(RECORD)
    result = results[0]
    assert result.waits_s is not None
    distances = [abs(other.reasons[0][0] - 42) for other in results]
    assert distances == sorted(distances), "the closest first change comes first"
    assert result.waits_s.size == recorded_trace("spike").tokens.size
    assert result.timeline.running.max() > 3
    slower_ms = [round(2 * (s + 0.01) * 1e3, 3) for s in result.waits_s.tolist()]
    running = result.timeline.running.tolist()
    report(RECORD | {"waiting_ms": slower_ms, "running": running}, tmp_path / "plot.png")
    output = capsys.readouterr().out
    assert "p95 simulated / measured: 0.50; failed: 0" in output
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_target_that_never_changed_is_compared_with_the_latest_first_change() -> None:
    first_s = [result.reasons[0][0] for result in forecast(RECORD | {"changes": []})]
    assert first_s == sorted(first_s, reverse=True)
