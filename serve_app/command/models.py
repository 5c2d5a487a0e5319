"""`embedserve models`: prepared models of this machine, and the models of a running service."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from serve_app.command import predefined_models, prepare, served_models
from serve_app.errors import ConfigurationError
from serve_app.model_prep.artifact import Artifact
from serve_app.model_prep.artifact_cache import list_artifacts

_NAMES_HELP = "model, space or identifier, as `embedserve models list` prints them"


def add_commands(commands: Any) -> None:
    """Adds the subcommands of `embedserve models`."""
    list_ = commands.add_parser(
        "list",
        help="print the prepared models",
        description="Print the prepared models in the user's cache directory, the most recently "
        "used ones first.",
    )
    list_.set_defaults(run=_list)

    prepare.add_commands(commands)
    served_models.add_commands(commands)
    predefined_models.add_commands(commands)

    remove = commands.add_parser(
        "remove",
        help="remove prepared models",
        description="Remove prepared models that no process uses. A service that needs one "
        "prepares it again.",
    )
    remove.add_argument("names", nargs="*", metavar="NAME", help=_NAMES_HELP)
    remove.add_argument("--all", action="store_true", help="remove all that no process uses")
    remove.add_argument("--yes", action="store_true", help="don't ask for confirmation")
    remove.set_defaults(run=_remove)

    verify = commands.add_parser(
        "verify",
        help="compare the files of prepared models with their digests",
        description="Compare the files of prepared models with the digests that were recorded "
        "when they were built. The exit status is 1 if a file is damaged.",
    )
    verify.add_argument("names", nargs="*", metavar="NAME", help=f"{_NAMES_HELP} (default: all)")
    verify.set_defaults(run=_verify)

    for subcommand in (list_, verify):
        subcommand.add_argument("--json", action="store_true", help="print JSON")


def _list(arguments: argparse.Namespace) -> int:
    artifacts = list_artifacts()
    if arguments.json:
        print(json.dumps([_as_json(artifact) for artifact in artifacts], indent=2))
        return 0
    table = Table("identifier", "model", "space", "engine", "precision", "MiB", "built", "used")
    for artifact in artifacts:
        fields = _as_json(artifact)
        table.add_row(
            fields["id"],
            *(fields[name] or "-" for name in ("model", "space", "engine", "precision")),
            f"{artifact.size_bytes / (1 << 20):,.1f}",
            _date(artifact.built_s),
            "now" if fields["in_use"] else _date(artifact.used_s),
        )
    Console(width=None if sys.stdout.isatty() else 240).print(table)
    if artifacts:
        total = sum(artifact.size_bytes for artifact in artifacts)
        print(f"{total / (1 << 20):,.1f} MiB below {artifacts[0].folder.parents[1]}")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    if arguments.all == bool(arguments.names):
        raise ConfigurationError("Name the models to remove, or pass --all.")
    artifacts = _select(arguments.names)
    size = f"{sum(artifact.size_bytes for artifact in artifacts) / (1 << 20):,.1f} MiB"
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("Pass --yes to remove models without a question.")
        for artifact in artifacts:
            print(f"{artifact.folder.name}  {artifact.labels.get('model', '')}")
        if input(f"Remove {len(artifacts)} artifacts, {size}? [y/N] ").lower() not in ("y", "yes"):
            return 1
    kept = [artifact for artifact in artifacts if not _removed(artifact)]
    for artifact in kept:
        print(
            f"{artifact.folder.name} is in use and stays. Stop the services that use it first.",
            file=sys.stderr,
        )
    return 1 if kept else 0


def _removed(artifact: Artifact) -> bool:
    size = artifact.size_bytes
    try:
        removed = artifact.remove()
    except OSError as error:
        raise ConfigurationError(f"Can't remove {artifact.folder}: {error.strerror}.") from error
    if removed:
        print(f"removed {artifact.folder.name}, {size / (1 << 20):,.1f} MiB")
    return removed


def _verify(arguments: argparse.Namespace) -> int:
    results = {artifact: artifact.damage() for artifact in _select(arguments.names)}
    if arguments.json:
        print(json.dumps([_as_json(a) | {"damage": faults} for a, faults in results.items()]))
    else:
        for artifact, faults in results.items():
            print(f"{artifact.folder.name}: {' '.join(faults) or 'intact'}")
    if not any(results.values()):
        return 0
    if not arguments.json:
        print("A service that needs a damaged model prepares it again.", file=sys.stderr)
    return 1


def _select(names: Sequence[str]) -> list[Artifact]:
    """Returns the artifacts with these names; without names, all.

    Raises:
        ConfigurationError: a name matches none.
    """
    artifacts = list_artifacts()
    for name in names:
        if not any(name in _names(artifact) for artifact in artifacts):
            known = sorted({_as_json(artifact)["model"] or "" for artifact in artifacts} - {""})
            raise ConfigurationError(
                f"No prepared model is called {name!r}. There are: {', '.join(known) or 'none'}."
            )
    return [a for a in artifacts if not names or not _names(a).isdisjoint(names)]


def _names(artifact: Artifact) -> set[str]:
    model = artifact.labels.get("model", "")
    return {artifact.folder.name, model, model.rpartition("/")[2], artifact.labels.get("space", "")}


def _as_json(artifact: Artifact) -> dict[str, Any]:
    labels = artifact.labels
    return {
        "id": artifact.folder.name,
        "kind": artifact.folder.parent.name,
        **{name: labels.get(name) for name in ("model", "space", "engine", "precision")},
        "size_bytes": artifact.size_bytes,
        "built": _date(artifact.built_s),
        "used": _date(artifact.used_s),
        "in_use": artifact.is_in_use(),
        "path": str(artifact.folder),
    }


def _date(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(timespec="minutes")
