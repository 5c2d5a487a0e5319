"""The commands `embedserve bench …` and `embedserve compare`: their options and handlers."""

import argparse
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .faults import command as faults_command
from .paths import CONFIG
from .target import (
    CLIENT_SCHEME,
    DIALECTS,
    HANDLE_SCHEME,
    ClientTarget,
    HandleTarget,
    HttpTarget,
    Target,
)
from .workloads import WORKLOADS

if TYPE_CHECKING:
    from .load import Plan

EXAMPLES = """\
  embedserve bench                         benchmark against other servers, with a report
  embedserve bench check                   check the speed against thresholds
  embedserve bench run --connections 32    throughput with 32 concurrent clients
  embedserve bench run --rate 50           latency at 50 requests/s
  embedserve bench capacity                the highest rate at which p99 stays below 50 ms
  embedserve compare URL URL               compare the speed and the vectors of two servers
  embedserve faults                        inject faults into a service under load
"""
#: The handlers print their errors themselves.
ERRORS: tuple[type[Exception], ...] = ()
DEFAULT_URL = "http://127.0.0.1:8000"
_WORKLOADS = "\n".join(f"  {w.name:<10} {w.description}" for w in WORKLOADS.values())
_API_KEY_ENV = "EMBEDSERVE_API_KEY"
_NO_CHECKOUT = f"{CONFIG} doesn't exist: run this in a checkout of the repository"
_OPEN_LOOP_CONNECTIONS, _CLOSED_LOOP_CONNECTIONS = 256, 8


def add_commands(commands: Any) -> None:
    """Adds the commands to the subparsers of `embedserve`, the result of `add_subparsers`."""
    _add_bench(commands)
    _add_compare(commands)
    faults_command.add_commands(commands)


def _add_bench(commands: Any) -> None:
    bench = _add_parser(
        commands,
        "bench",
        "benchmark EmbedServe against other servers, or load a running one",
        "Without COMMAND: start EmbedServe and every other server that is available, measure them "
        "in alternating rounds and write benchmarks/REPORT.md. Needs a checkout of the repository.",
    )
    bench.add_argument(
        "--quick", action="store_true", help="one short round, written to benchmarks/quick/"
    )
    bench.add_argument(
        "--rounds", type=_positive_int, help="measurements of each figure (default: 5)"
    )
    _add_precision_option(bench, default="auto")
    bench.set_defaults(run=_run_suite)
    bench_commands = bench.add_subparsers(metavar="COMMAND")
    _add_check(bench_commands)
    _add_report(bench_commands)
    _add_run(bench_commands)
    _add_capacity(bench_commands)


def _add_precision_option(parser: argparse.ArgumentParser, *, default: str) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default=default,
        help="of EmbedServe's engine; `auto`: the fastest that this CPU computes natively. The "
        "other servers compute at fp32 (default: %(default)s)",
    )


def _add_check(bench_commands: Any) -> None:
    check = _add_parser(
        bench_commands,
        "check",
        "check EmbedServe's speed against thresholds",
        "Measure EmbedServe in each topology, its engine alone and infinity-emb in alternating "
        "rounds, in about 12 minutes. Exits with 1 if a threshold is not met. Needs a checkout of "
        "the repository.",
    )
    check.add_argument("--rounds", type=_positive_int, help="default: 5")
    check.add_argument(
        "--baseline",
        type=Path,
        metavar="FOLDER",
        help="a checkout of another version, which is measured as well",
    )
    _add_precision_option(check, default="fp32")
    check.set_defaults(run=_run_check)


def _add_report(bench_commands: Any) -> None:
    report = _add_parser(
        bench_commands, "report", "write the report from the records of `embedserve bench`"
    )
    report.add_argument("records", nargs="?", type=Path, help="default: the newest records")
    report.set_defaults(run=_run_report)


def _add_run(bench_commands: Any) -> None:
    run = _add_parser(bench_commands, "run", "run one workload; the last line is the JSON record")
    _add_target_options(run)
    _add_load_options(run)
    run.add_argument(
        "--rate", type=_positive_float, help="open loop: requests/s, independent of responses"
    )
    run.add_argument(
        "--pid", type=_positive_int, help="the server's root process, to measure its CPU and memory"
    )
    run.add_argument(
        "--record", action="store_true", help="append the record to benchmarks/results/"
    )
    run.set_defaults(run=_run_workload)


def _add_capacity(bench_commands: Any) -> None:
    capacity = _add_parser(
        bench_commands, "capacity", "find the highest rate at which p99 meets an objective"
    )
    _add_target_options(capacity)
    _add_load_options(capacity)
    capacity.add_argument(
        "--config", type=Path, help="start this configuration with one replica and measure that"
    )
    capacity.add_argument(
        "--slo-p99-ms", type=_positive_float, default=50.0, help="default: %(default)g"
    )
    capacity.add_argument(
        "--for-rate", type=_positive_float, help="print the replicas for so many requests/s"
    )
    capacity.set_defaults(run=_run_capacity)


def _add_compare(commands: Any) -> None:
    compare = _add_parser(commands, "compare", "compare the speed and the vectors of two servers")
    compare.add_argument("urls", nargs=2, type=_url, metavar="URL")
    compare.add_argument("--dialects", nargs=2, choices=DIALECTS, default=["openai", "openai"])
    compare.add_argument("--models", nargs=2, default=["all-MiniLM-L6-v2"] * 2, metavar="MODEL")
    compare.add_argument(
        "--texts", type=_read_texts, help="a file with one text a line, whose vectors to compare"
    )
    compare.add_argument(
        "--rounds", type=_positive_int, default=5, help="turns of each server (default: 5)"
    )
    _add_load_options(compare)
    compare.set_defaults(run=_run_compare)


def _add_parser(
    commands: Any, name: str, summary: str, description: str | None = None
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"workloads:\n{_WORKLOADS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _positive_float(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _url(text: str) -> str:
    if not text.startswith(("http://", CLIENT_SCHEME, HANDLE_SCHEME)):
        raise argparse.ArgumentTypeError(
            f"{text} is neither http://host:port (TLS is not supported), nor "
            f"{CLIENT_SCHEME}http://host:port (through the Python client), nor "
            f"{HANDLE_SCHEME}application"
        )
    return text


def _target(url: str, dialect: str, model: str, api_key: str | None = None) -> Target:
    if url.startswith(HANDLE_SCHEME):
        return HandleTarget(url.removeprefix(HANDLE_SCHEME))
    if url.startswith(CLIENT_SCHEME):
        return ClientTarget(url.removeprefix(CLIENT_SCHEME))
    return HttpTarget(url, dialect, model, api_key)


def _api_key() -> str | None:
    key = os.environ.get(_API_KEY_ENV, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{_API_KEY_ENV} holds characters that a header can't hold")
    return key or None


def _read_texts(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"can't read {path}: {error}") from None
    texts = [line for line in lines if line.strip()]
    if len(texts) < 2:
        raise argparse.ArgumentTypeError(f"{path} holds fewer than two texts")
    return texts


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "url",
        nargs="?",
        type=_url,
        default=DEFAULT_URL,
        help=f"http://host:port, {CLIENT_SCHEME}http://host:port (through the Python client) or "
        f"{HANDLE_SCHEME}application (default: %(default)s)",
    )
    parser.add_argument("--dialect", choices=DIALECTS, default="openai")
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="default: %(default)s")


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--workload", choices=WORKLOADS, default="query", help="default: %(default)s")
    add(
        "--connections",
        type=_positive_int,
        help=f"concurrent clients (default: {_CLOSED_LOOP_CONNECTIONS}); in an open loop the "
        f"maximum of open connections (default: {_OPEN_LOOP_CONNECTIONS})",
    )
    add(
        "--duration",
        type=_positive_float,
        default=10.0,
        help="measured seconds (default: %(default)g)",
    )
    add(
        "--warmup",
        type=_positive_float,
        default=2.0,
        help="seconds of load before the measurement (default: %(default)g)",
    )
    add(
        "--seed",
        type=int,
        help="of the texts and arrival times; repeat one to repeat a run (default: a new one, so "
        "that no cache holds the texts)",
    )


def _plan(
    arguments: argparse.Namespace, rate: float | None = None, *, open_loop: bool = False
) -> "Plan":
    from .load import Plan

    is_open = open_loop or rate is not None
    connections = _OPEN_LOOP_CONNECTIONS if is_open else _CLOSED_LOOP_CONNECTIONS
    return Plan(
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        rate=rate,
        connections=arguments.connections or connections,
        seed=time.time_ns() if arguments.seed is None else arguments.seed,
    )


def _run_workload(arguments: argparse.Namespace) -> int:
    from .bench import bench

    try:
        key = _api_key()
    except ValueError as error:
        return _fail(str(error))
    target = _target(arguments.url, arguments.dialect, arguments.model, key)
    workload = WORKLOADS[arguments.workload]
    if workload.shape is not None and arguments.rate is None:
        return _fail(f"the workload {workload.name} varies a rate: set it with --rate")
    plan = _plan(arguments, arguments.rate)
    return bench(target, workload, plan, save=arguments.record, pid=arguments.pid)


def _run_suite(arguments: argparse.Namespace) -> int:
    if not _has_matplotlib():
        return 1
    if not CONFIG.is_file():
        return _fail(_NO_CHECKOUT)
    from .suite import run_suite

    return run_suite(
        quick=arguments.quick, rounds=arguments.rounds, precision=_precision(arguments)
    )


def _run_check(arguments: argparse.Namespace) -> int:
    if not CONFIG.is_file():
        return _fail(_NO_CHECKOUT)
    if arguments.baseline is not None and not (arguments.baseline / CONFIG.name).is_file():
        return _fail(f"{arguments.baseline} is not a checkout: it has no {CONFIG.name}")
    from .thresholds import run_check

    return run_check(
        rounds=arguments.rounds, precision=_precision(arguments), baseline=arguments.baseline
    )


def _precision(arguments: argparse.Namespace) -> str | None:
    return None if arguments.precision == "auto" else arguments.precision


def _run_report(arguments: argparse.Namespace) -> int:
    if not _has_matplotlib():
        return 1
    from .report.publish import newest_records, publish

    records = arguments.records or newest_records()
    if records is None or not records.is_file():
        return _fail("there are no records: run `embedserve bench` first")
    try:
        page = publish(records)
    except (ValueError, LookupError) as error:
        return _fail(f"{records} isn't a complete set of records of `embedserve bench`: {error!r}")
    print(f"wrote {page} and the table in README.md")
    return 0


def _has_matplotlib() -> bool:
    """Whether plots can be drawn; if not, prints an error, before anything is measured."""
    if find_spec("matplotlib"):
        return True
    _fail("the plots need matplotlib: run `make bench`, or pip install 'embedserve[bench]'")
    return False


def _fail(message: str) -> int:
    print(f"embedserve: {message}", file=sys.stderr)
    return 1


def _run_capacity(arguments: argparse.Namespace) -> int:
    from .capacity import capacity, replica_capacity

    workload, plan = WORKLOADS[arguments.workload], _plan(arguments, open_loop=True)
    objective = {"slo_p99_ms": arguments.slo_p99_ms, "target_rate": arguments.for_rate}
    if arguments.config is not None:
        return replica_capacity(arguments.config, workload, plan, **objective)
    target = _target(arguments.url, arguments.dialect, arguments.model)
    return capacity(target, workload, plan, **objective)


def _run_compare(arguments: argparse.Namespace) -> int:
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
