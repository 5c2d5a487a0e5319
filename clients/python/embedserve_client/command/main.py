"""The command `embedserve`, whichever distribution is installed.

The client brings the command and what needs no service on this machine. A distribution that has
more to add, as the service does, names a module under the entry points `embedserve.commands`; it
has `add_commands(commands)`, `EXAMPLES`, and `ERRORS`, the errors whose words are for people.
"""

import argparse
import json
import os
import sys
from importlib.metadata import entry_points
from typing import Any

from embedserve_client import __version__
from embedserve_client.command import embed_command, service_command, stdio_command
from embedserve_client.errors import EmbedError, NetworkError, NotRunning, Timeout

_PLUGINS = "embedserve.commands"
#: Of the service; here only to tell what is missing where it isn't installed.
_OF_THE_SERVICE = ("serve", "prepare", "bench", "compare", "cache", "key", "settings")
_EXAMPLES = """\
  embedserve embed texts.txt               a file of texts into texts.npy; run again to go on
  echo Hello | embedserve embed -          vectors as JSON lines
  embedserve health                        whether the service is there
  embedserve stdio                         vectors over standard input and output, for programs
"""
_STATUSES = """
exit status: 0 done, 1 failed, 2 wrongly called, 3 the service isn't there or doesn't answer in
time, 130 interrupted
"""
_GONE, _INTERRUPTED = 3, 130


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    plugins = [found.load() for found in entry_points(group=_PLUGINS)]
    words = sys.argv[1:] if argv is None else argv
    if not plugins and words and words[0] in _OF_THE_SERVICE:
        return _fail(f"`{words[0]}` is part of the service: pip install embedserve")
    arguments = _parser(plugins).parse_args(words)
    told = (EmbedError, *(error for plugin in plugins for error in plugin.ERRORS))
    try:
        status: int = arguments.run(arguments)
    except told as error:
        if getattr(arguments, "json", False):
            code = getattr(error, "code", "failed")
            print(json.dumps({"error": {"code": code, "message": str(error)}}))
        gone = isinstance(error, NetworkError | Timeout | NotRunning)
        return _fail(str(error), _GONE if gone else 1)
    except KeyboardInterrupt:
        return _fail("interrupted", _INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would fail to flush it at its end
        return 1
    return status


def _parser(plugins: list[Any]) -> argparse.ArgumentParser:
    examples = "".join([*(plugin.EXAMPLES for plugin in plugins), _EXAMPLES])
    parser = argparse.ArgumentParser(
        prog="embedserve",
        description="An autoscaling text-embedding service on Ray Serve, and its client.",
        epilog=f"examples:\n{examples}{_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"embedserve {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for plugin in plugins:
        plugin.add_commands(commands)
    for part in (embed_command, stdio_command, service_command):
        part.add_commands(commands)
    return parser


def _fail(message: str, status: int = 1) -> int:
    print(f"embedserve: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
