"""Machines of a cluster are killed, lose power, join and restart: no request fails."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.machines import unavailable_reason
from tests.on_ray.conftest import ROOT

#: On an idle machine with two cores it takes two minutes.
_TIMEOUT_S = 600


@pytest.fixture(scope="module")
def events() -> Mapping[str, Mapping[str, Any]]:
    if reason := unavailable_reason():
        pytest.skip(f"Several machines can't be run here: {reason}.")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.nodes", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return {event["event"]: event for event in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "name",
    ["a worker is killed", "the head is restarted", "a worker joins", "a worker loses power"],
)
def test_no_request_fails(events: Mapping[str, Mapping[str, Any]], name: str) -> None:
    event = events[name]
    assert event["right"] > 100
    kinds = ("refused", "failed", "lost", "wrong")
    assert [event[kind] for kind in kinds] == [0, 0, 0, 0]
    assert event["right"] + event["unreachable"] == event["sent"]


def test_only_clients_of_the_machine_that_fails_notice(
    events: Mapping[str, Mapping[str, Any]],
) -> None:
    unreachable = {name: event["unreachable"] for name, event in events.items()}
    assert unreachable["a worker joins"] == unreachable["none"] == 0
    assert unreachable["the head is restarted"] > 0  # two clients don't know another machine
