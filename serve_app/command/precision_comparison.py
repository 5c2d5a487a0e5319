"""`embedserve prepare --compare`: each precision of each model on this machine.

Every precision is prepared, then runs in a process of its own; the processes take turns, so that
all of them meet the same machine.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.command.progress import print_step
from serve_app.config import AppConfig, ModelConfig
from serve_app.engines.cpu_features import INT8_PRECISIONS
from serve_app.errors import ConfigurationError
from serve_app.model_prep.engine_selection import select_engines
from serve_app.types import Parity

#: Engines and precisions on CPUs.
_CHOICES = (
    ("torch", "fp32"),
    *(("openvino", precision) for precision in ("fp32", "bf16", *INT8_PRECISIONS)),
)
_ROUNDS = 9


@dataclass(slots=True)
class Choice:
    """An engine at a precision, and what was measured of it."""

    engine: str
    precision: str
    rejected: str | None = None  #: why it can't be used here
    parity: Parity | None = None
    memory_bytes: int = 0  #: of the loaded model, beyond that of the process
    queries: list[float] = field(default_factory=list)  #: texts/s of each round
    documents: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Engine and precision, for people."""
        return f"{self.engine} {self.precision}"


def compare_precisions(application: AppConfig, plot: Path | None) -> None:
    """Measures all precisions of the application's dense models on this CPU, and prints tables.

    Args:
        application: its models are measured.
        plot: receives a plot of the first model, as an image; None: there is none.

    Raises:
        ConfigurationError: the plot needs matplotlib.
    """
    draw = None if plot is None else _import_draw()
    for model in application.served_models:
        if model.parsed_source.engine is not None:
            continue
        choices = measure_precisions(model)
        Console(width=None if sys.stdout.isatty() else 200).print(_table(model, choices))
        for choice in choices:
            if choice.rejected:
                print_step("rejected", f"{choice.name}: {choice.rejected}")
        if plot is not None and draw is not None:
            draw(model.name, [choice for choice in choices if choice.queries], plot)
            print_step("plot", str(plot))
            draw = None


def _import_draw() -> Any:
    try:
        from serve_app.command.precision_plot import draw
    except ModuleNotFoundError:
        raise ConfigurationError(
            "--plot needs matplotlib: pip install 'embedserve[bench]'"
        ) from None
    return draw


def measure_precisions(
    model: ModelConfig,
    pairs: Sequence[tuple[str, str]] = _CHOICES,
    *,
    rounds: int = _ROUNDS,
) -> list[Choice]:
    """Prepares a model at each precision, and measures those that this CPU can use in turns.

    Args:
        model: a dense model of texts.
        pairs: engines and precisions.
        rounds: turns of each.
    """
    choices = [Choice(*pair) for pair in pairs]
    with ExitStack() as stack:
        workers = list[tuple[Choice, subprocess.Popen[str]]]()
        for choice in choices:
            print_step("preparing", f"{model.name}: {choice.name}")
            try:
                config = _configure(model, choice)
                (selection,) = select_engines(AppConfig.model_validate(config))
            except ConfigurationError as error:
                choice.rejected = str(error)
                continue
            choice.parity = selection.parity
            worker = stack.enter_context(_start(config))
            choice.memory_bytes = _read(worker)["memory_bytes"]
            workers.append((choice, worker))
        for number in range(rounds):
            print_step("measuring", f"round {number + 1} of {rounds}")
            for choice, worker in workers:
                assert worker.stdin
                print(file=worker.stdin, flush=True)
                speeds = _read(worker)
                choice.queries.append(speeds["queries"])
                choice.documents.append(speeds["documents"])
    return choices


def _configure(model: ModelConfig, choice: Choice) -> dict[str, Any]:
    """Returns the fields of a configuration with this model alone."""
    fields = model.model_dump(mode="json", exclude_unset=True) | {
        "name": model.name,
        "source": model.source,
        "engine": choice.engine,
        "precision": choice.precision,
        "device": "cpu",
        "fallback": (),
    }
    return {"model": fields, "cache": {"url": "none"}}


def _start(config: Mapping[str, Any]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "serve_app.command.precision_worker", json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _read(worker: "subprocess.Popen[str]") -> dict[str, Any]:
    assert worker.stdout
    for line in worker.stdout:
        if line.startswith("{"):
            values: dict[str, Any] = json.loads(line)
            return values
    raise ConfigurationError("The process that measures an engine has ended; its output says why.")


def _table(model: ModelConfig, choices: Sequence[Choice]) -> Table:
    table = Table(title=model.name)
    table.add_column("engine and precision")
    for column in ("queries/s", "", "documents/s", "", "MiB", "mean cosine", "top 10 kept"):
        table.add_column(column, justify="right")
    measured = {choice.name: choice for choice in choices if choice.queries}
    base = measured.get("openvino fp32", Choice("", ""))
    for choice in measured.values():
        parity, loss = choice.parity, choice.parity and choice.parity.quantization_loss
        least = "" if parity is None or parity.cosine_min is None else f"≥ {parity.cosine_min:.6f}"
        table.add_row(
            choice.name,
            *_speed(choice.queries, base.queries),
            *_speed(choice.documents, base.documents),
            f"{choice.memory_bytes / (1 << 20):,.0f}",
            f"{loss.cosine_mean:.4f}" if loss else least,
            f"{loss.kept:.1%}" if loss else "",
        )
    return table


def _speed(rounds: Sequence[float], base: Sequence[float]) -> tuple[str, str]:
    """Returns the median of the rounds, and the median ratio to those of float32, if any."""
    if not base:
        return f"{median(rounds):,.0f}", ""
    ratio = median(a / b for a, b in zip(rounds, base, strict=True))
    return f"{median(rounds):,.0f}", f"{ratio:.2f}×"
