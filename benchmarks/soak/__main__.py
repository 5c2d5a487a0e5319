"""`python -m benchmarks.soak`: a long mixed load, and what grows meanwhile."""

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from ..display import Display
from ..paths import CONFIG, RESULTS
from ..record import append_record
from .plot import draw
from .run import soak
from .service import TOPOLOGIES
from .table import summary, table

_OVERHEAD_S = 160.0
_WARM_UP_SHARE, _MAX_WARM_UP_MINUTES = 0.25, 10.0


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Start a service on free ports and send it a mixed load in phases, so that "
        "replicas are added and removed: queries and documents in several APIs, new and repeated "
        "texts, files, requests that are not valid, clients that leave, scrapes and live streams. "
        "Every ten seconds, sample the memory, descriptors and threads of each process, the keys "
        "of the cache server, and the files of the service. Fit a line to each series. Appends a "
        "record to benchmarks/results, draws a plot, and exits with 1 if something grows, or if a "
        "request was failed, lost or wrong. Needs a checkout of the repository.",
    )
    parser.add_argument(
        "--minutes", type=float, default=120.0, help="length of the load (default: %(default)g)"
    )
    parser.add_argument("--topology", choices=TOPOLOGIES, default="separate")
    parser.add_argument(
        "--warm-up",
        type=float,
        metavar="MINUTES",
        help="left out of the trends (default: a quarter of the load, 10 at most)",
    )
    parser.add_argument(
        "--rate", type=float, default=12.0, help="requests per second (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which requests are sent")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the record (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, help="file of the plot, .png or .svg (default: none)")
    arguments = parser.parse_args()
    if not CONFIG.is_file():
        print(f"{CONFIG} doesn't exist: run this in a checkout of the repository", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service ends as well
    warm_up = arguments.warm_up
    if warm_up is None:
        warm_up = min(arguments.minutes * _WARM_UP_SHARE, _MAX_WARM_UP_MINUTES)
    file = arguments.results / f"soak-{datetime.now(UTC):%Y-%m-%dT%H%M}.jsonl"
    with Display(arguments.minutes * 60 + _OVERHEAD_S) as display:
        record = soak(
            arguments.topology,
            arguments.minutes,
            warm_up,
            arguments.rate,
            arguments.seed,
            display,
        )
    append_record(file, record)
    if arguments.plot is not None:
        draw(record, arguments.plot)
    print(summary(record), table(record), sep="\n\n")
    for problem in record["problems"]:
        print(problem, file=sys.stderr)
    return 1 if record["problems"] else 0


sys.exit(main())
