"""The commands `embedserve bench run`, `bench capacity` and `compare`: their options, no more."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.target import DIALECTS, Target
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from benchmarks.load import Plan

HERE = "http://127.0.0.1:8000"
_WORKLOADS = "\n".join(f"  {w.name:<10} {w.description}" for w in WORKLOADS.values())


def add_commands(commands: Any) -> None:
    """Adds the commands to the parser of `embedserve` (what `add_subparsers` returns)."""
    bench = commands.add_parser("bench", help="put load on a running server and time it")
    benches = bench.add_subparsers(required=True, metavar="COMMAND")

    run = _parser(benches, "run", "one run of one workload; ends with its record as JSON")
    _add_target(run)
    _add_load(run)
    run.add_argument(
        "--rate", type=_positive, help="requests/s, sent whether or not others are answered"
    )
    run.add_argument("--record", action="store_true", help="keep it under benchmarks/results/")
    run.set_defaults(run=_run)

    capacity = _parser(benches, "capacity", "the highest rate at which p99 stays under a limit")
    _add_target(capacity)
    _add_load(capacity)
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


def _parser(commands: Any, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
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
    if not text.startswith("http://"):
        raise argparse.ArgumentTypeError(f"{text} doesn't begin with http:// (TLS isn't spoken)")
    return text


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
    from benchmarks.load import Plan

    connections = 256 if open_loop or rate is not None else 8
    return Plan(
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        rate=rate,
        connections=arguments.connections or connections,
        seed=time.time_ns() if arguments.seed is None else arguments.seed,
    )


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.bench import bench

    target = Target(arguments.url, arguments.dialect, arguments.model)
    plan = _plan(arguments, arguments.rate)
    return bench(target, arguments.workload, plan, keep_record=arguments.record)


def _capacity(arguments: argparse.Namespace) -> int:
    from benchmarks.capacity import capacity

    target = Target(arguments.url, arguments.dialect, arguments.model)
    return capacity(
        target,
        arguments.workload,
        _plan(arguments, open_loop=True),
        slo_p99_ms=arguments.slo_p99_ms,
        for_rate=arguments.for_rate,
    )


def _compare(arguments: argparse.Namespace) -> int:
    from benchmarks.compare import compare

    first, second = (
        Target(url, dialect, model)
        for url, dialect, model in zip(
            arguments.urls, arguments.dialects, arguments.models, strict=True
        )
    )
    return compare(
        first, second, arguments.workload, _plan(arguments), arguments.rounds, arguments.texts
    )
