"""Machines of a cluster fail and join under load: what clients notice.

    python -m benchmarks.nodes            prints a Markdown table
    python -m benchmarks.nodes --json     prints each event as JSON

Three machines (`machines.py`) run a Ray cluster with configs/cluster.yaml: a head, whose state is
on a Valkey server, and two workers with one replica of each deployment. The model is `hashing`, so
that the vectors can be computed here for comparison. Clients send one request after another, always
with new texts, through HAProxy on the machines. Some use one machine and never repeat a request;
others send it to the next machine if the connection is refused or breaks.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from .machines import Machine, isolate, unavailable_reason
from .node_cluster import NodeCluster
from .node_load import Load, Outcome

_WARM_UP_S = 5.0
_SETTLE_S = 3.0
_HEADERS = {
    "event": "event",
    "sent": "requests",
    "right": "right",
    "repeated": "repeated by the client",
    "unreachable": "of the machine that fails",
    "refused": "refused",
    "failed": "failed",
    "lost": "lost",
    "wrong": "wrong",
    "worst_s": "slowest, s",
    "silence_s": "longest without an answer, s",
    "recovered_s": "recovered after, s",
}


class Events:
    """The events, each with what clients saw of it."""

    def __init__(self, cluster: NodeCluster, load: Load) -> None:
        self._cluster = cluster
        self._load = load

    def run(
        self,
        name: str,
        event: Callable[[], object],
        until: Callable[[float], bool],
        failed: Collection[Machine] = (),
    ) -> Outcome:
        """Causes an event, waits until the cluster has recovered, and returns the outcome.

        Args:
            name: of the event.
            event: causes it.
            until: whether the cluster has recovered, since the event's moment.
            failed: machines that fail.

        Raises:
            TimeoutError: the cluster doesn't recover.
        """
        started_s = time.monotonic()
        event()
        self._cluster.wait_until(lambda: until(started_s), name)
        recovered_s = time.monotonic() - started_s
        time.sleep(_SETTLE_S)
        addresses = [machine.address for machine in failed]
        outcome = self._load.outcome(name, started_s, recovered_s, addresses)
        print(outcome, self._load.errors(started_s), file=sys.stderr, flush=True)
        return outcome

    def all(self) -> list[Outcome]:
        """Returns the outcomes of all events, in their order."""
        cluster, load, head = self._cluster, self._load, self._cluster.head
        first, second = cluster.workers
        for addresses in (
            *((head.address,), (first.address,)) * 2,
            (second.address, first.address, head.address),
            (second.address, head.address, first.address),
        ):
            load.add_client(*addresses)
        outcomes = [self.run("none", lambda: time.sleep(_WARM_UP_S), lambda since_s: True)]
        outcomes.append(
            self.run(
                "a worker is killed",
                second.kill,
                self._others_answer(first, head),
                [second],
            )
        )
        outcomes.append(
            self.run(
                "the head is restarted",
                cluster.restart_head,
                lambda since_s: cluster.is_head_back(),
                [head],
            )
        )
        outcomes.append(
            self.run("a worker joins", cluster.add_worker, lambda since_s: cluster.is_served(2))
        )
        joined = cluster.workers[-1]
        load.add_client(joined.address)
        load.add_client(joined.address, head.address)
        time.sleep(_SETTLE_S)
        outcomes.append(
            self.run(
                "a worker loses power",
                joined.disconnect,
                self._others_answer(first, head),
                [joined],
            )
        )
        return outcomes

    def _others_answer(self, *machines: Machine) -> Callable[[float], bool]:
        return lambda since_s: all(
            self._load.has_answered(machine.address, since_s) for machine in machines
        )


def main() -> int:
    """Runs the events and prints what clients saw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--logs", type=Path, help="keep the logs of the machines in this directory")
    arguments = parser.parse_args()
    if reason := unavailable_reason():
        raise SystemExit(f"Several machines can't be run here: {reason}.")
    isolate()
    with tempfile.TemporaryDirectory(prefix="es-") as scratch:
        logs = arguments.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
        with NodeCluster(logs) as cluster:
            started_s = time.monotonic()
            cluster.start()
            print(f"ready after {time.monotonic() - started_s:.0f} s", file=sys.stderr, flush=True)
            with Load(cluster.port) as load:
                outcomes = Events(cluster, load).all()
            if arguments.logs:
                cluster.copy_logs()
    if arguments.json:
        print(json.dumps([outcome._asdict() for outcome in outcomes]))
        return 0
    print("", *_HEADERS.values(), "", sep=" | ")
    print("|---" * len(_HEADERS) + "|")
    for outcome in outcomes:
        cells = (outcome._asdict()[name] for name in _HEADERS)
        print("", *(f"{c:.1f}" if isinstance(c, float) else c for c in cells), "", sep=" | ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
