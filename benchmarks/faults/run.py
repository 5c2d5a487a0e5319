"""Runs faults on a service of one topology and saves the records."""

import itertools
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..display import Display
from ..record import append_record, make_record
from .experiment import Experiment
from .fault import Fault
from .load import fetch_references, make_texts
from .records import broken_requests, summary
from .reply_check import ReplyCheck
from .service import FaultyService

_TEXTS = 600
_START_S = 60.0
_OVERHEAD_S = 25.0


def run_topology(
    topology: str,
    faults: Sequence[Fault],
    rate: float,
    seed: int,
    file: Path,
    display: Display,
    until_s: float | None,
) -> bool:
    """Starts a service, injects faults into it and ends it; returns whether no request was broken.

    Args:
        topology: of the service.
        faults: injected one after another.
        rate: requests per second.
        seed: decides which requests are sent.
        file: each record is appended to it.
        display: shows the progress.
        until_s: the faults are repeated until this monotonic time; None: each is injected once.
    """
    is_good = True
    with FaultyService(topology) as service:
        display.start_step(f"{topology}: the service starts")
        for progress in service.start():
            display.start_step(f"{topology}: the service starts: {progress}")
        texts = make_texts(_TEXTS, seed)
        display.start_step(f"{topology}: reference vectors")
        check = ReplyCheck(*fetch_references(service.url, service.api_key, texts))
        display.finish_step(_START_S, "")
        experiment = Experiment(service, texts, check, rate)
        for number, fault in enumerate(faults if until_s is None else itertools.cycle(faults)):
            if until_s is not None and time.monotonic() > until_s:
                break
            name = f"{topology}: {fault.name}"
            found = experiment.run(fault, seed + number, partial(_show, display, name))
            parameters = {
                "bench": "faults",
                "command": f"embedserve faults --topology {topology} --only {fault.name}",
                "description": fault.description,
                "load_average": round(os.getloadavg()[0], 1),
            }
            record = make_record(parameters, found)
            append_record(file, record)
            is_good &= not broken_requests(record) and record["recovery_s"] is not None
            is_good &= not record["problem"]
            display.finish_step(fault.duration_s + _OVERHEAD_S, summary(record))
            if not record["healthy_again"]:
                display.print(f"{topology}: the service is not healthy after {fault.name}")
    return is_good


def _show(display: Display, name: str, step: str) -> None:
    display.start_step(f"{name}: {step}")
