"""`embedserve stdio`: vectors over standard input and output."""

import argparse
from typing import Any

import orjson

from embedserve_client.command.backend_options import (
    add_backend_options,
    open_backend,
    print_progress,
    run_and_close,
)
from embedserve_client.errors import FileError
from embedserve_client.stdio import (
    BATCH,
    DEFAULT_CONCURRENCY,
    DEFAULT_READY_TIMEOUT_S,
    QUERY,
    StdioServer,
    claim_standard_streams,
    encode,
)

_EPILOG = """\
The server prints {"status": "ready"} once it has computed a vector, then replies to each line
  {"id": "1", "command": "encode-query", "params": {"text": "…"}}
  {"id": "2", "command": "encode-batch", "params": {"texts": ["…", "…"]}}
with {"id", "result"} or {"id", "error"}, in any order. It exits when its input ends.

examples:
  embedserve stdio                              use the service at EMBEDSERVE_URL
  embedserve stdio --start                      start the service if it isn't running
  embedserve stdio encode-query "a text"        print one vector and exit
  embedserve stdio encode-query "a text" --local
  echo '["a", "b"]' | embedserve stdio encode-batch
"""


def add_commands(commands: Any) -> None:
    """Adds `stdio`."""
    parser = commands.add_parser(
        "stdio",
        help="serve vectors over standard input and output, for other programs",
        description="Read requests from standard input and write replies to standard output, one "
        "JSON object per line.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "mode",
        nargs="?",
        choices=("server", QUERY, BATCH),
        default="server",
        help="`server` runs until its input ends (default); the others print one result and exit",
    )
    parser.add_argument(
        "texts", nargs="*", help="texts of a single result (default: read from standard input)"
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=DEFAULT_CONCURRENCY,
        help="maximum number of concurrent requests (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        help="timeout of each request in seconds, retries included (default: %(default)g)",
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=DEFAULT_READY_TIMEOUT_S,
        help="time in seconds in which a service must return a vector, or the server exits "
        "(default: %(default)g)",
    )
    add_backend_options(parser)
    parser.set_defaults(run=_stdio)


def _stdio(arguments: argparse.Namespace) -> int:
    requests, replies = claim_standard_streams()
    with open_backend(arguments, timeout_s=arguments.timeout) as embedder:
        if arguments.mode == "server":
            server = StdioServer(
                embedder,
                requests,
                replies,
                max(1, arguments.concurrency),
                arguments.ready_timeout,
                print_progress,
            )
            run_and_close(embedder, server.run())
            return 0
        texts = arguments.texts or _parse_texts(requests.read(), arguments.mode)
        if arguments.mode == QUERY and len(texts) != 1:
            raise FileError(f"{QUERY} needs exactly one text, not {len(texts)}.")
        result = run_and_close(embedder, encode(embedder, arguments.mode, texts))
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    replies.write(orjson.dumps(result, option=option))
    replies.flush()
    return 0


def _parse_texts(content: bytes, mode: str) -> list[str]:
    """Returns the plain text of a query, or the JSON list of a batch."""
    if mode == QUERY:
        return [content.decode("utf-8", "replace").rstrip("\n")]
    try:
        texts = orjson.loads(content)
    except ValueError as error:
        raise FileError(f"Standard input isn't a JSON list of strings: {error}.") from None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FileError("Standard input isn't a JSON list of strings.")
    return texts
