"""`embedserve prepare`: checks the configuration and prepares all models, as `serve` does first."""

import argparse
from pathlib import Path
from typing import Any

from serve_app.command.config_file import add_config_argument, read_config
from serve_app.command.precision_comparison import compare_precisions
from serve_app.command.progress import print_step
from serve_app.config import AppConfig
from serve_app.engines.cpu_features import INT8_PRECISIONS
from serve_app.model_prep.engine_selection import EngineSelection, iter_engines


def add_commands(commands: Any) -> None:
    """Adds `prepare` to the parser."""
    prepare = commands.add_parser(
        "prepare",
        help="check the configuration, prepare the models and select their engines",
        description="Check the configuration and the files of each model, select its engine and "
        "prepare the model for it. `serve` does the same; run `prepare` ahead of time, for example "
        "when you build a container image.",
    )
    add_config_argument(prepare)
    prepare.add_argument(
        "--compare",
        action="store_true",
        help="also prepare and measure every precision on this CPU: speed, memory, and what the "
        "vectors lose (minutes)",
    )
    prepare.add_argument(
        "--plot", type=Path, metavar="FILE", help="with --compare: draw the first model"
    )
    prepare.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    _, application = read_config(arguments.config)
    prepare_models(application)
    if arguments.compare:
        compare_precisions(application, arguments.plot)
    return 0


def prepare_models(application: AppConfig) -> tuple[EngineSelection, ...]:
    """Selects the engines as the application will, and prints each selection."""
    total = len(application.served_models)
    what = "the model" if total == 1 else f"{total} models"
    duration = "half a minute each, once"
    settings = map(application.engine_settings, application.served_models)
    if any(each.precision in INT8_PRECISIONS for each in settings):
        duration += "; minutes at int8"
    print_step("preparing", f"{what}, where engines need it ({duration})")
    selections = []
    for number, selection in enumerate(iter_engines(application), 1):
        _print_selection(selection, "model" if total == 1 else f"{number}/{total}")
        selections.append(selection)
    return tuple(selections)


def _print_selection(selection: EngineSelection, label: str) -> None:
    spec, parity = selection.spec, selection.parity
    width = f"{len(spec.labels)} labels" if spec.labels else f"{spec.dim} dimensions"
    print_step(label, f"{spec.name}, {width}, {spec.max_tokens} tokens")
    print_step("tasks", ", ".join(spec.tasks))
    if spec.weights_sha256 is not None:
        print_step("weights", f"SHA-256 {spec.weights_sha256[:16]}…")
    print_step("space", spec.space_id)
    for reason in selection.rejected:
        print_step("rejected", reason)
    print_step("engine", f"{selection.engine} at {selection.precision}")
    if parity is not None:
        texts = (parity.quantization_loss or parity).texts
        print_step("parity", f"{parity.measure} over {texts} texts")
