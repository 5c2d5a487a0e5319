"""The entry point of the command `embedserve`.

The client provides the command and the subcommands that only need a URL. Other distributions add
subcommands: an entry point in the group `embedserve.commands` names a module with
`add_commands(commands)`, `EXAMPLES` (text for `--help`) and `ERRORS` (exceptions to print without a
traceback). With `extend_commands(commands)` it adds to the subcommands of the client.
"""

import argparse
import json
import os
import sys
from importlib.metadata import entry_points
from typing import Any

from embedserve_client import __version__
from embedserve_client.command import embed_command, migrate_command, service_command, stdio_command
from embedserve_client.errors import (
    EmbedError,
    NetworkError,
    RequestTimeoutError,
    ServiceNotRunningError,
)

_PLUGIN_GROUP = "embedserve.commands"
#: Subcommands of this package. They start faster without the imports of the others.
_CLIENT_COMMANDS = ("embed", "migrate", "stdio", "health", "info", "models")
#: Subcommands of the package `embedserve`, to name it in the error when it isn't installed.
_SERVICE_COMMANDS = (
    *("serve", "run", "check", "prepare", "deploy", "cache", "key", "settings", "shadow", "top"),
    *("models list", "models prepare", "models remove", "models status", "models verify"),
    *("bench", "compare"),
)
_EXAMPLES = """\
  embedserve embed texts.txt               embed a file into texts.npy; run again to resume
  echo Hello | embedserve embed -          print vectors as JSON lines
  embedserve migrate my-index --model new  embed an index again, with another model
  embedserve health                        check whether the service is healthy
  embedserve stdio                         serve vectors over standard input and output
"""
_EXIT_STATUS = """
exit status: 0 success, 1 failure, 2 usage error, 3 the service is unreachable or timed out,
130 interrupted
"""
_UNREACHABLE, _INTERRUPTED = 3, 130


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else ""
    if command == "models" and argv[1:2] and not argv[1].startswith("-"):
        command = f"models {argv[1]}"
    plugins = [] if command in _CLIENT_COMMANDS else _load_plugins()
    if not plugins and command in _SERVICE_COMMANDS:
        return _fail(f"`{command}` is part of the service: pip install embedserve")
    arguments = _parser(plugins).parse_args(argv)
    known_errors = (EmbedError, *(error for plugin in plugins for error in plugin.ERRORS))
    try:
        status: int = arguments.run(arguments)
    except known_errors as error:
        if getattr(arguments, "json", False):
            code = getattr(error, "code", "failed")
            print(json.dumps({"error": {"code": code, "message": str(error)}}))
        is_unreachable = isinstance(
            error, NetworkError | RequestTimeoutError | ServiceNotRunningError
        )
        return _fail(str(error), _UNREACHABLE if is_unreachable else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the flush at exit fails again
        return 1
    return status


def _load_plugins() -> list[Any]:
    # Sorted, because the order of entry points depends on the installation.
    points = sorted(entry_points(group=_PLUGIN_GROUP), key=lambda point: point.name)
    return [point.load() for point in points]


def _parser(plugins: list[Any]) -> argparse.ArgumentParser:
    examples = "".join([*(plugin.EXAMPLES for plugin in plugins), _EXAMPLES])
    parser = argparse.ArgumentParser(
        prog="embedserve",
        description="An autoscaling text-embedding service on Ray Serve, and its client.",
        epilog=f"examples:\n{examples}{_EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for plugin in plugins:
        plugin.add_commands(commands)
    for module in (embed_command, migrate_command, stdio_command, service_command):
        module.add_commands(commands)
    for plugin in plugins:
        if hasattr(plugin, "extend_commands"):
            plugin.extend_commands(commands)
    return parser


def _fail(message: str, status: int = 1) -> int:
    print(f"embedserve: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
