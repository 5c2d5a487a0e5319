"""`embedserve prepare`: checks the configuration and prepares the model, as `serve` does first."""

import argparse
from typing import Any

from serve_app.command.config_file import add_config_argument, read_config
from serve_app.command.progress import print_step
from serve_app.config import AppConfig
from serve_app.model_prep.engine_selection import EngineSelection, select_engine


def add_commands(commands: Any) -> None:
    """Adds `prepare` to the parser."""
    prepare = commands.add_parser(
        "prepare",
        help="check the configuration, prepare the model and select its engine",
        description="Check the configuration and the model's files, select the engine and prepare "
        "the model for it. `serve` does the same; run `prepare` ahead of time, for example when "
        "you build a container image.",
    )
    add_config_argument(prepare)
    prepare.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    _, application = read_config(arguments.config)
    prepare_model(application)
    return 0


def prepare_model(application: AppConfig) -> EngineSelection:
    """Selects the engine as the application will, and prints the selection."""
    print_step("preparing", "the model, if its engine needs it (half a minute, once)")
    selection = select_engine(application)
    spec, parity = selection.spec, selection.parity
    print_step("model", f"{spec.name}, {spec.dim} dimensions, {spec.max_tokens} tokens")
    if spec.weights_sha256 is not None:
        print_step("weights", f"SHA-256 {spec.weights_sha256[:16]}…")
    print_step("space", spec.space_id)
    for reason in selection.rejected:
        print_step("rejected", reason)
    print_step("engine", f"{selection.config.engine} at {selection.config.precision}")
    if parity is not None:
        print_step("parity", f"cosine >= {parity.cosine_min:.7f} over {parity.texts} texts")
    return selection
