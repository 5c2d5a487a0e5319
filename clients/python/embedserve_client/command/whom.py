"""The options that say who computes: a service, one that is started, or a model in this process."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

from embedserve_client.async_client import AsyncClient
from embedserve_client.base import Settings
from embedserve_client.files.job import Embedder
from embedserve_client.in_process import InProcess
from embedserve_client.local import LocalModel
from embedserve_client.settings import HERE, Environment
from embedserve_client.supervisor import Supervisor, port_of

T = TypeVar("T")
_ENVIRONMENT = """
environment: EMBEDSERVE_URL (in place of --url), EMBEDSERVE_API_KEY (the key to show the service),
EMBEDSERVE_LOCAL_MODEL (in place of --local's MODEL)
"""


def add_url(parser: argparse.ArgumentParser) -> None:
    """Where the service is."""
    parser.add_argument("--url", help=f"the service (default: EMBEDSERVE_URL, or {HERE})")


def add_whom(parser: argparse.ArgumentParser) -> None:
    """Who computes."""
    who = parser.add_mutually_exclusive_group()
    add_url(who)  # type: ignore[arg-type]  # it has the one method that is used
    who.add_argument(
        "--start",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="use the service on this machine; if there is none, start it, and end it afterwards",
    )
    who.add_argument(
        "--local",
        nargs="?",
        const="",
        metavar="MODEL",
        help="compute in this process with sentence-transformers; a folder, or package:<module>",
    )
    parser.epilog = (parser.epilog or "") + _ENVIRONMENT


@contextmanager
def whom(arguments: argparse.Namespace, **settings: Unpack[Settings]) -> Iterator[Embedder]:
    """Who computes, to `finish` work with; `settings` are those of an `AsyncClient`.

    Raises:
        NotRunning: the service can't be started.
    """
    if arguments.local is not None:
        yield InProcess(LocalModel(arguments.local or Environment.read().local_model))
    elif arguments.start is not None:
        port = port_of(Environment.read().url)
        with Supervisor(port, config=arguments.start or None, on_progress=_say) as supervisor:
            yield AsyncClient(supervisor.url, **settings)
    else:
        yield AsyncClient(arguments.url, **settings)


def finish(embedder: Embedder, work: Coroutine[Any, Any, T]) -> T:
    """Does the work on an event loop, and closes the embedder there."""

    async def both() -> T:
        try:
            return await work
        finally:
            await embedder.close()

    return asyncio.run(both())


def _say(text: str) -> None:
    print(f"starting  {text.splitlines()[-1] if text else ''}", file=sys.stderr, flush=True)
