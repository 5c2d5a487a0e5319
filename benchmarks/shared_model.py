"""What several programs cost in memory with a model of their own each, and on one service.

    python -m benchmarks.shared_model --workers 3

Each worker embeds 64 texts and then waits, so that all that it needs is loaded. Told is the memory
that falls to each process (PSS), summed up: what processes share counts once. Ends with the record
as one line of JSON.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from .record import line, record
from .usage import Usage
from embedserve_client import Client, LocalModel, Supervisor
from embedserve_client.settings import DEFAULT_MODEL
from embedserve_client.wire import Options
from serve_app.command.serve import free_port

_TEXTS = [f"text {i} of those that each worker embeds" for i in range(64)]


def work(source: str) -> None:
    """One worker: embeds, says so, and waits until it is told to end."""
    if source.startswith("http"):
        Client(source).embed(_TEXTS)
    else:
        LocalModel(source).embed(_TEXTS, Options())
    print("done", flush=True)
    sys.stdin.read()


@contextmanager
def workers(n: int, source: str) -> Iterator[list[int]]:
    """The processes of `n` workers that have embedded."""
    command = [sys.executable, "-m", "benchmarks.shared_model", "--work", source]
    with ExitStack() as stack:
        running = []
        for _ in range(n):
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n", "A worker failed."
        yield [process.pid for process in running]


def pss_mib(pids: list[int]) -> float:
    """What falls to these processes and those below them."""
    return round(sum(float(Usage(pid).figures()["pss_mib"]) for pid in pids), 1)


def main() -> int:
    """Measures and tells."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_model")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument("--config", help="the service's configuration; it must serve that model")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return 0
    n = arguments.workers
    with workers(n, arguments.model) as pids:
        own = pss_mib(pids)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)  # noqa: E731
    with Supervisor(free_port(), config=arguments.config, on_progress=say) as service:
        served_by = service.status().pid
        assert served_by is not None
        with workers(n, service.url) as pids:
            clients, served = pss_mib(pids), pss_mib([served_by])
    figures = {"own_mib": own, "service_mib": served, "clients_mib": clients}
    print(f"| {n} workers with a model each | {own:.0f} MiB |")
    print(f"| {n} workers on one service | {served:.0f} + {clients:.0f} MiB |")
    print(
        line(record({"workload": "shared_model", "workers": n, "model": arguments.model}, figures))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
