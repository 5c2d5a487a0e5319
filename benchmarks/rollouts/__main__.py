"""`python -m benchmarks.rollouts`: roll-outs under load."""

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from ..display import Display
from ..faults.service import TOPOLOGIES
from ..paths import CONFIG, RESULTS
from .run import is_good, run_topology
from .table import table

_START_S, _ROUND_S = 60.0, 25.0


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rollouts",
        description="Start a service on free ports, send it a steady mixed load, and roll out one "
        "changed configuration after another with `embedserve deploy`: another model, engine, "
        "setting, number of replicas, code version, and some that can't run. Every reply is "
        "compared with the vectors of the space that it names. Appends a record of each roll-out "
        "to benchmarks/results, and exits with 1 if a request was failed, lost or wrong. Needs a "
        "checkout of the repository.",
    )
    parser.add_argument("--rounds", type=int, default=20, help="roll-outs (default: %(default)s)")
    parser.add_argument("--topology", choices=[*TOPOLOGIES], help="default: one after the other")
    parser.add_argument(
        "--rate", type=float, default=10.0, help="requests per second (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which requests are sent")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if not CONFIG.is_file():
        print(f"{CONFIG} doesn't exist: run this in a checkout of the repository", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service ends as well
    topologies = [arguments.topology] if arguments.topology else [*TOPOLOGIES]
    file = arguments.results / f"rollouts-{datetime.now(UTC):%Y-%m-%dT%H%M}.jsonl"
    records = []
    with Display(len(topologies) * (_START_S + arguments.rounds * _ROUND_S)) as display:
        for topology in topologies:
            records += run_topology(
                topology, arguments.rounds, arguments.rate, arguments.seed, file, display
            )
    print(table(records))
    return 0 if all(map(is_good, records)) else 1


sys.exit(main())
