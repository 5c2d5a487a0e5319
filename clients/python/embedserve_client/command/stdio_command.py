"""`embedserve stdio`: vectors over standard input and output."""

import argparse
from typing import Any

import orjson

from embedserve_client.command.whom import add_whom, finish, whom
from embedserve_client.errors import FileError
from embedserve_client.stdio import BATCH, QUERY, Bridge, encode, private_streams

_PROTOCOL = """\
It prints {"status": "ready"}, then answers each line
  {"id": "1", "command": "encode-query", "params": {"text": "…"}}
  {"id": "2", "command": "encode-batch", "params": {"texts": ["…", "…"]}}
with {"id", "result"} or {"id", "error"}, not always in order, and ends with its input.

examples:
  embedserve stdio                              ask the service at EMBEDSERVE_URL
  embedserve stdio --start                      start one where there is none
  embedserve stdio encode-query "a text"        one vector, and no more
  echo '["a", "b"]' | embedserve stdio encode-batch
"""


def add_commands(commands: Any) -> None:
    """Adds `stdio`."""
    parser = commands.add_parser(
        "stdio",
        help="vectors over standard input and output, for programs",
        description="Answers requests on standard input, one JSON line each.",
        epilog=_PROTOCOL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "mode",
        nargs="?",
        choices=("server", QUERY, BATCH),
        default="server",
        help="`server` stays (default); the others print one result and end",
    )
    parser.add_argument("texts", nargs="*", help="of one result; none: read from standard input")
    parser.add_argument(
        "--most", type=int, default=64, help="requests under way at once (default: %(default)s)"
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds (default: 60)")
    add_whom(parser)
    parser.set_defaults(run=_stdio)


def _stdio(arguments: argparse.Namespace) -> int:
    lines, replies = private_streams()
    with whom(arguments, timeout_s=arguments.timeout) as embedder:
        if arguments.mode == "server":
            finish(embedder, Bridge(embedder, lines, replies, max(1, arguments.most)).run())
            return 0
        texts = arguments.texts or _read(lines.read(), arguments.mode)
        if arguments.mode == QUERY and len(texts) != 1:
            raise FileError(f"{QUERY} takes one text; {len(texts)} came.")
        result = finish(embedder, encode(embedder, arguments.mode, texts))
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    replies.write(orjson.dumps(result, option=option))
    replies.flush()
    return 0


def _read(content: bytes, mode: str) -> list[str]:
    """The text on standard input, or for a batch a JSON list of them."""
    if mode == QUERY:
        return [content.decode("utf-8", "replace").rstrip("\n")]
    try:
        texts = orjson.loads(content)
    except ValueError as error:
        raise FileError(f"Standard input isn't a JSON list of texts: {error}.") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FileError("Standard input isn't a JSON list of texts.")
    return texts
