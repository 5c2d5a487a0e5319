"""Rolls configurations out on a service under load, and counts what becomes of every request."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..display import Display
from ..faults.ledger import Figures
from ..faults.load import Load, fetch_references, make_texts
from ..faults.reply_check import ReplyCheck
from ..faults.service import FaultyService
from ..record import Record, append_record, make_record
from .changes import Change, Config, applied, base_config, make_changes, with_hashing

_TEXTS = 400
_START_S = 60.0
_ROUND_S = 25.0
_PAUSE_S = 2.0
_DEPLOY_TIMEOUT_S = 180.0
#: With the preparation of a model on busy cores.
_COMMAND_TIMEOUT_S = 420.0


class _Deployed(NamedTuple):
    """How `embedserve deploy` ended."""

    status: int
    seconds: float
    message: str  #: its standard error


def run_topology(
    topology: str, rounds: int, rate: float, seed: int, file: Path, display: Display
) -> list[Record]:
    """Rolls out `rounds` changes on a service of a topology; returns the records.

    Args:
        topology: of the service.
        rounds: number of roll-outs.
        rate: requests per second.
        seed: decides which requests are sent.
        file: each record is appended to it.
        display: shows the progress.
    """
    records = []
    with FaultyService(topology, base_config) as service:
        display.start_step(f"{topology}: the service starts")
        for progress in service.start():
            display.start_step(f"{topology}: the service starts: {progress}")
        texts = make_texts(_TEXTS, seed)
        check = _make_check(service, texts, display)
        display.finish_step(_START_S, "")
        with Load(service.url, service.api_key, texts, check, rate, seed) as load:
            time.sleep(_PAUSE_S)
            for number, change, deployed, start_s in _rounds(service, rounds, display):
                end_s = time.monotonic()
                time.sleep(_PAUSE_S)
                figures = load.ledger.periods(start_s, end_s)["during"]
                record = _record(topology, number, change, deployed, rate, figures)
                append_record(file, record)
                records.append(record)
                display.finish_step(_ROUND_S, f"{topology} {number}: {summary(record)}")
        total = make_record(
            {**_bench(topology), "rounds": rounds, "rate": rate},
            {
                "change": "all",
                "total": Figures.of(load.ledger.outcomes)._asdict(),
                "errors": load.ledger.errors(),
            },
        )
    append_record(file, total)
    return [*records, total]


def is_good(record: Record) -> bool:
    """Whether no request was broken, and the command ended as it should, with the reason."""
    figures = record.get("during") or record["total"]
    is_unbroken = not any(figures[kind] for kind in ("failed", "lost", "wrong"))
    return (
        is_unbroken
        and record.get("exit_status") == record.get("expected_exit_status")
        and record.get("expected_message", "") in record.get("message", "")
    )


def summary(record: Record) -> str:
    """Returns the outcome of a roll-out on one line."""
    figures = record["during"]
    counts = ", ".join(
        f"{figures[kind]} {kind}"
        for kind in ("refused", "repeated", "failed", "lost", "wrong")
        if figures[kind]
    )
    outcome = {0: "deployed", 1: "not deployed"}.get(record["exit_status"], "unexpected end")
    return (
        f"{record['change']}: {outcome} in {record['seconds']:.0f} s, {figures['sent']} sent, "
        f"{counts or 'all right'}, worst {figures['worst_ms'] / 1000:.1f} s"
    )


def _make_check(service: FaultyService, texts: list[str], display: Display) -> ReplyCheck:
    """Returns a check that knows the vectors of both models."""
    display.start_step(f"{service.topology}: reference vectors")
    check = ReplyCheck(*fetch_references(service.url, service.api_key, texts))
    for config in (with_hashing(service.config), service.config):
        deployed = _deploy(service, config)
        if deployed.status:
            raise RuntimeError(deployed.message)
        check.accept(*fetch_references(service.url, service.api_key, texts))
    return check


def _rounds(
    service: FaultyService, rounds: int, display: Display
) -> Iterator[tuple[int, Change, _Deployed, float]]:
    """Yields each roll-out when it has ended, with the moment of its start."""
    config = service.config
    changes = make_changes(service.folder)
    for number in range(1, rounds + 1):
        change = next(changes)
        display.start_step(f"{service.topology} {number}: {change.name}")
        start_s = time.monotonic()
        changed = applied(change, config)
        deployed = _deploy(service, changed)
        if deployed.status == 0:
            config = changed
        yield number, change, deployed, start_s


def _deploy(service: FaultyService, config: Config) -> _Deployed:
    file = service.write_config("rollout.yaml", config)
    start_s = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "serve_app.command.main", "deploy", str(file)),
            *("--address", service.gcs_address()),
            *("--timeout", str(_DEPLOY_TIMEOUT_S)),
        ],
        env={**os.environ, **service.ray_env},
        capture_output=True,
        text=True,
        timeout=_COMMAND_TIMEOUT_S,
        check=False,
    )
    message = done.stderr.strip().replace(f"{service.folder}/", "")
    return _Deployed(done.returncode, time.monotonic() - start_s, message)


def _bench(topology: str) -> dict[str, Any]:
    command = f"python -m benchmarks.rollouts --topology {topology}"
    return {"bench": "rollouts", "topology": topology, "command": command}


def _record(
    topology: str, number: int, change: Change, deployed: _Deployed, rate: float, figures: Figures
) -> dict[str, Any]:
    parameters = {
        **_bench(topology),
        "round": number,
        "change": change.name,
        "rate": rate,
        "load_average": round(os.getloadavg()[0], 1),
    }
    found = {
        "expected_exit_status": 1 if change.reason else 0,
        "expected_message": change.reason,
        "exit_status": deployed.status,
        "seconds": round(deployed.seconds, 1),
        "message": deployed.message,
        "during": figures._asdict(),
    }
    return make_record(parameters, found)
