"""The memory of several programs that each load a model, or share one service.

    python -m benchmarks.shared_model --workers 2 4 8

Each worker embeds 64 texts, so that everything it needs is loaded, and then waits. Memory is the
sum of the processes' proportional set sizes (PSS), in which shared pages count once. The last lines
are the records as JSON, with the time from the start of the service to its first vector.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from embedserve_client import Client, LocalModel, Supervisor
from embedserve_client.settings import DEFAULT_LOCAL_MODEL
from serve_app.command.ports import free_port

from .record import make_record, to_json
from .usage import Usage, process_tree

_TEXTS = [f"text {i} of those that each worker embeds" for i in range(64)]


def run_worker(source: str) -> None:
    """Embeds with the service at a URL or with a local model, then waits for the end of input."""
    if source.startswith("http"):
        Client(source).embed(_TEXTS)
    else:
        LocalModel(source).embed(_TEXTS)
    print("done", flush=True)
    sys.stdin.read()


@contextmanager
def running_workers(n: int, source: str) -> Iterator[list[int]]:
    """Yields the process ids of `n` workers that have embedded and wait."""
    command = [sys.executable, "-m", f"{__package__}.shared_model", "--work", source]
    with ExitStack() as stack:
        processes = []
        for _ in range(n):
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n", "A worker failed."
        yield [process.pid for process in processes]


def total_pss_mib(pids: list[int]) -> float:
    """Returns the memory of processes and their descendants."""
    return round(sum(float(Usage(pid).metrics()["pss_mib"]) for pid in pids), 1)


def main() -> int:
    """Measures both cases for each number of workers; prints a Markdown table and the records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_model")
    parser.add_argument("--workers", type=int, nargs="+", default=[3], help="default: 3")
    parser.add_argument("--model", default=DEFAULT_LOCAL_MODEL, help="default: %(default)s")
    parser.add_argument("--config", help="the service's configuration; it must serve that model")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        run_worker(arguments.work)
        return 0
    print("| workers | a model each | one service, its processes + workers |\n|---|---|---|")
    records = [measure(n, arguments.model, arguments.config) for n in arguments.workers]
    print(*map(to_json, records), sep="\n")
    return 0


def measure(workers: int, model: str, config: str | None) -> dict[str, Any]:
    """Prints the row of the table and returns the record of both cases."""
    with running_workers(workers, model) as pids:
        own_models_mib = total_pss_mib(pids)
    started = time.monotonic()
    with Supervisor(free_port(), config=config, on_progress=_print_progress) as service:
        Client(service.url).embed(["the first vector"])
        first_vector_s = round(time.monotonic() - started, 2)
        pid = service.status().pid
        assert pid is not None, "The service runs. This is a bug."
        with running_workers(workers, service.url) as pids:
            clients_mib, service_mib = total_pss_mib(pids), total_pss_mib([pid])
            processes = len(process_tree(pid))
    print(f"| {workers} | {own_models_mib:.0f} MiB | {service_mib:.0f} + {clients_mib:.0f} MiB |")
    return make_record(
        {"workload": "shared_model", "workers": workers, "model": model},
        {
            "own_mib": own_models_mib,
            "service_mib": service_mib,
            "clients_mib": clients_mib,
            "service_processes": processes,
            "first_vector_s": first_vector_s,
        },
    )


def _print_progress(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
