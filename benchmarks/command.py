"""The commands `embedserve bench …` and `embedserve compare`: their options, no more."""

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .target import (
    DIALECTS,
    HANDLE,
    OURS,
    ClientTarget,
    HandleTarget,
    HttpTarget,
    Target,
)
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from .load import Plan

EXAMPLES = """\
  embedserve bench                         measure it against other servers, with a report
  embedserve bench run --connections 32    throughput with 32 concurrent clients
  embedserve bench run --rate 50           latency at 50 requests/s
  embedserve bench capacity                the highest rate at which p99 stays below 50 ms
  embedserve compare URL URL               compare the speed and the vectors of two servers
"""
#: The commands print their own errors.
ERRORS: tuple[type[Exception], ...] = ()
HERE = "http://127.0.0.1:8000"
_WORKLOADS = "\n".join(f"  {w.name:<10} {w.description}" for w in WORKLOADS.values())


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `embedserve` (what `add_subparsers` returns)."""
    bench = _parser(
        commands,
        "bench",
        "measure EmbedServe against other servers, or put load on a running one",
        "Without a command: starts EmbedServe and every other server that can be had, measures all "
        "of them in turn, and writes benchmarks/REPORT.md.",
    )
    bench.add_argument(
        "--quick", action="store_true", help="one short round, into benchmarks/quick/ (minutes)"
    )
    bench.add_argument("--rounds", type=_count, help="how often each figure is taken (default: 5)")
    bench.set_defaults(run=_suite)
    benches = bench.add_subparsers(metavar="COMMAND")

    report = _parser(benches, "report", "write the report of a run of `embedserve bench` anew")
    report.add_argument("records", nargs="?", type=Path, help="default: the newest ones")
    report.set_defaults(run=_report)

    run = _parser(benches, "run", "one run of one workload; ends with its record as JSON")
    _add_target(run)
    _add_load(run)
    run.add_argument(
        "--rate", type=_positive, help="requests/s, sent whether or not others are answered"
    )
    run.add_argument("--pid", type=_count, help="the server's first process, to tell its cost")
    run.add_argument("--record", action="store_true", help="keep it under benchmarks/results/")
    run.set_defaults(run=_run)

    capacity = _parser(benches, "capacity", "the highest rate at which p99 stays under a limit")
    _add_target(capacity)
    _add_load(capacity)
    capacity.add_argument(
        "--config", type=Path, help="start this configuration with one replica, and measure that"
    )
    capacity.add_argument("--slo-p99-ms", type=_positive, default=50.0, help="default: %(default)g")
    capacity.add_argument("--for-rate", type=_positive, help="requests/s to plan replicas for")
    capacity.set_defaults(run=_capacity)

    compare = _parser(commands, "compare", "two servers: the same load in turn, and their vectors")
    compare.add_argument("urls", nargs=2, type=_url, metavar="URL")
    compare.add_argument("--dialects", nargs=2, choices=DIALECTS, default=["openai", "openai"])
    compare.add_argument("--models", nargs=2, default=["all-MiniLM-L6-v2"] * 2, metavar="MODEL")
    compare.add_argument("--texts", type=_texts, help="one text a line, to compare the vectors on")
    compare.add_argument("--rounds", type=_count, default=5, help="turns for each (default: 5)")
    _add_load(compare)
    compare.set_defaults(run=_compare)


def _parser(
    commands: Any, name: str, words: str, description: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=description or f"{words[0].upper()}{words[1:]}.",
        epilog=f"workloads:\n{_WORKLOADS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def _url(text: str) -> str:
    if not text.startswith(("http://", OURS, HANDLE)):
        raise argparse.ArgumentTypeError(
            f"{text} is neither http://host:port (TLS isn't spoken), nor {OURS}http://host:port "
            f"(through our own client), nor {HANDLE}application"
        )
    return text


def _target(url: str, dialect: str, model: str) -> Target:
    if url.startswith(HANDLE):
        return HandleTarget(url.removeprefix(HANDLE))
    if url.startswith(OURS):
        return ClientTarget(url.removeprefix(OURS))
    return HttpTarget(url, dialect, model)


def _texts(text: str) -> list[str]:
    try:
        lines = Path(text).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"can't read {text}: {error}") from None
    texts = [line for line in lines if line.strip()]
    if len(texts) < 2:
        raise argparse.ArgumentTypeError(f"{text} holds fewer than two texts")
    return texts


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", nargs="?", type=_url, default=HERE, help="default: %(default)s")
    parser.add_argument("--dialect", choices=DIALECTS, default="openai")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="default: %(default)s")


def _add_load(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, default="query", help="default: %(default)s")
    add("--connections", type=_count, help="clients (default: 8); with a rate, the most open (256)")
    add(
        "--duration", type=_positive, default=10.0, help="seconds that count (default: %(default)g)"
    )
    add("--warmup", type=_positive, default=2.0, help="seconds before (default: %(default)g)")
    add("--seed", type=int, help="asks the same texts again (default: new ones: no cache helps)")


def _plan(
    arguments: argparse.Namespace, rate: float | None = None, *, open_loop: bool = False
) -> "Plan":
    from .load import Plan

    connections = 256 if open_loop or rate is not None else 8
    return Plan(
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        rate=rate,
        connections=arguments.connections or connections,
        seed=time.time_ns() if arguments.seed is None else arguments.seed,
    )


def _run(arguments: argparse.Namespace) -> int:
    from .bench import bench

    target = _target(arguments.url, arguments.dialect, arguments.model)
    workload = WORKLOADS[arguments.workload]
    if workload.shape is not None and arguments.rate is None:
        return _fail(f"{workload.name} is a rate that changes: say --rate")
    plan = _plan(arguments, arguments.rate)
    return bench(
        target,
        workload,
        plan,
        keep_record=arguments.record,
        pid=arguments.pid,
    )


def _suite(arguments: argparse.Namespace) -> int:
    if not _can_draw():
        return 1
    from .suite import measure_all

    return measure_all(quick=arguments.quick, rounds=arguments.rounds)


def _report(arguments: argparse.Namespace) -> int:
    if not _can_draw():
        return 1
    from .report.publish import newest, publish

    records = arguments.records or newest()
    if records is None or not records.is_file():
        return _fail("there are no records: `embedserve bench` makes them")
    try:
        page = publish(records)
    except (ValueError, LookupError) as error:
        return _fail(f"{records} doesn't hold the records of a whole `embedserve bench`: {error!r}")
    print(f"{page}, and the table in README.md")
    return 0


def _can_draw() -> bool:
    """Whether the pictures can be made; better known before the measuring than after."""
    if find_spec("matplotlib"):
        return True
    _fail("the pictures need matplotlib: `make bench`, or pip install 'embedserve[bench]'")
    return False


def _fail(message: str) -> int:
    print(f"embedserve: {message}", file=sys.stderr)
    return 1


def _capacity(arguments: argparse.Namespace) -> int:
    from .capacity import capacity, capacity_of_one

    workload, plan = WORKLOADS[arguments.workload], _plan(arguments, open_loop=True)
    wanted = {"slo_p99_ms": arguments.slo_p99_ms, "for_rate": arguments.for_rate}
    if arguments.config is not None:
        return capacity_of_one(arguments.config, workload, plan, **wanted)
    target = _target(arguments.url, arguments.dialect, arguments.model)
    return capacity(target, workload, plan, **wanted)


def _compare(arguments: argparse.Namespace) -> int:
    from .compare import compare

    first, second = (
        _target(url, dialect, model)
        for url, dialect, model in zip(
            arguments.urls, arguments.dialects, arguments.models, strict=True
        )
    )
    return compare(
        first,
        second,
        WORKLOADS[arguments.workload],
        _plan(arguments),
        arguments.rounds,
        arguments.texts,
    )
