from pathlib import Path

import pytest

from benchmarks.capacity import highest_passing_rate, replica_capacity
from benchmarks.load import Outcome, Plan
from benchmarks.peers.base import Peer
from benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("limit", [3.0, 19.0, 21.0, 777.0, 12_345.0])
def test_the_highest_passing_rate_is_found_from_above_and_below(limit: float) -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    rate = highest_passing_rate(passes, first_rate=20)
    assert rate <= limit <= rate * 1.05
    assert len(tried) <= 20


def test_the_search_ends_if_no_rate_passes() -> None:
    assert highest_passing_rate(lambda rate: False, first_rate=20) == 0


def test_replica_capacity_starts_the_configuration_with_one_replica(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outcome, "generator_is_the_limit", lambda self: False)  # on a busy machine
    replica_counts: list[int] = []

    def make_peer(name: str, title: str, replicas: int, config: Path) -> Peer:
        replica_counts.append(replicas)
        program = ["-m", "tests.benchmarks.fake_server"]
        return Peer(name, title, lambda p: [p.python, *program, str(p.port), "0", "", "50"])

    status = replica_capacity(
        Path("serve_config.yaml"),
        WORKLOADS["query"],
        Plan(duration_s=1.0, warmup_s=0.2, connections=64),
        slo_p99_ms=10_000,
        target_rate=None,
        make_peer=make_peer,
    )
    assert status == 0
    assert replica_counts == [1]
    assert "One replica keeps p99 at or below 10000 ms up to" in capsys.readouterr().out
