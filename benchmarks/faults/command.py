"""The command `embedserve faults`: its options and handlers."""

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..paths import CONFIG, REPORT_FOLDER, RESULTS

_TOPOLOGIES = ("separate", "colocated")
_RATE = 25.0
#: What a fault takes besides its duration: the load before and after it, and a check of health.
_OVERHEAD_S = 25.0
_START_S = 60.0
DESCRIPTION = """\
Start a service on free ports, send it a steady mixed load, and inject one fault at a time:
processes are killed or stopped, Valkey fails, clients misbehave, operators err. Every request is
counted: right, refused, failed, lost, or answered with wrong vectors.

Appends a record of each fault to benchmarks/results. Exits with 1 if a request was failed, lost or
wrong, or the service did not recover. Other services on the machine are left alone; Ctrl-C ends
everything that the command started. Needs a checkout of the repository."""
EPILOG = """\
examples:
  embedserve faults --list                           print all faults
  embedserve faults --only kill-embedder             inject one fault, in both topologies
  embedserve faults --topology colocated             inject all faults of one topology
  embedserve faults --minutes 60                     repeat them for an hour
  embedserve faults report                           write benchmarks/FAULTS.md from the records
"""


def add_commands(commands: Any) -> None:
    """Adds `faults` to the subparsers of `embedserve`."""
    faults = commands.add_parser(
        "faults",
        help="inject faults into a service under load, and count every request",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(faults)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options and the handler."""
    parser.add_argument("action", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--list", action="store_true", help="print all faults, and exit")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="inject these faults only")
    parser.add_argument("--topology", choices=_TOPOLOGIES, help="default: one after the other")
    parser.add_argument(
        "--minutes",
        type=float,
        help="repeat the faults until so many minutes have passed (default: each once)",
    )
    parser.add_argument(
        "--rate", type=float, default=_RATE, help="requests per second (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which requests are sent")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the records (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    if arguments.list:
        return _print_list()
    if arguments.action == "report":
        return _write_report(arguments.results)
    if not CONFIG.is_file():
        print(f"{CONFIG} doesn't exist: run this in a checkout of the repository", file=sys.stderr)
        return 2
    return _inject(arguments)


def _print_list() -> int:
    from .catalog import FAULTS

    for fault in FAULTS.values():
        print(f"{fault.name:<22} {', '.join(fault.topologies):<20} {fault.description}")
    return 0


def _write_report(results: Path) -> int:
    from .page import write_page
    from .plot import draw

    draw(results, REPORT_FOLDER / "faults" / "pictures")
    print(write_page(results, REPORT_FOLDER))
    return 0


def _inject(arguments: argparse.Namespace) -> int:
    from ..display import Display
    from .catalog import FAULTS
    from .run import run_topology

    if unknown := {*(arguments.only or ())} - {*FAULTS}:
        print(
            f"Unknown faults: {', '.join(sorted(unknown))}. `embedserve faults --list` prints all.",
            file=sys.stderr,
        )
        return 2
    chosen = [fault for name, fault in FAULTS.items() if name in (arguments.only or FAULTS)]
    plans = {
        topology: [fault for fault in chosen if topology in fault.topologies]
        for topology in ([arguments.topology] if arguments.topology else _TOPOLOGIES)
    }
    plans = {topology: faults for topology, faults in plans.items() if faults}
    once_s = sum(_START_S + sum(f.duration_s + _OVERHEAD_S for f in fs) for fs in plans.values())
    total_s = once_s if arguments.minutes is None else arguments.minutes * 60
    started = datetime.now(UTC)
    file = arguments.results / f"faults-{started:%Y-%m-%dT%H%M}.jsonl"
    is_good = bool(plans)
    with Display(total_s) as display:
        for topology, faults in plans.items():
            until_s = None
            if arguments.minutes is not None:
                until_s = time.monotonic() + arguments.minutes * 60 / len(plans)
            is_good &= run_topology(
                topology, faults, arguments.rate, arguments.seed, file, display, until_s
            )
    return 0 if is_good else 1
