"""The options that select a backend: a running service, a supervised service, or a local model."""

import argparse
import asyncio
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

from embedserve_client.async_client import AsyncClient
from embedserve_client.async_local_model import AsyncLocalModel
from embedserve_client.base import ClientOptions
from embedserve_client.errors import LocalModelError
from embedserve_client.files.job import AsyncEmbedder
from embedserve_client.local_model import LocalModel
from embedserve_client.settings import DEFAULT_URL, EnvironmentSettings
from embedserve_client.supervisor import Supervisor, local_port

T = TypeVar("T")
_ENVIRONMENT = """
environment: EMBEDSERVE_URL (default of --url), EMBEDSERVE_API_KEY (sent as a bearer token),
EMBEDSERVE_LOCAL_MODEL (default of --local)
"""


def add_url_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--url`."""
    parser.add_argument(
        "--url", help=f"URL of the service (default: EMBEDSERVE_URL, or {DEFAULT_URL})"
    )


def add_backend_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--url`, `--start`, `--start-on-ray` and `--local`, which exclude each other."""
    group = parser.add_mutually_exclusive_group()
    add_url_option(group)  # type: ignore[arg-type]  # a group has `add_argument` too
    group.add_argument(
        "--start",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="start the service on this machine unless it is running, in one process, and stop it "
        "at the end",
    )
    group.add_argument(
        "--start-on-ray",
        nargs="?",
        const="",
        metavar="CONFIG",
        help="like --start, but run the service on Ray, which adds replicas and autoscaling",
    )
    group.add_argument(
        "--local",
        nargs="?",
        const="",
        metavar="MODEL",
        help="compute in this process with a sentence-transformers model: a directory, or "
        "package:<module>",
    )
    add_model_option(parser)
    parser.epilog = (parser.epilog or "") + _ENVIRONMENT


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model", metavar="NAME", help="a model of the service (default: the service's default)"
    )


@contextmanager
def open_backend(
    arguments: argparse.Namespace, **options: Unpack[ClientOptions]
) -> Iterator[AsyncEmbedder]:
    """Yields the selected backend; pass it to `run_and_close`.

    Args:
        arguments: the parsed options of `add_backend_options`.
        options: options of the `AsyncClient`.

    Raises:
        LocalModelError: both `--local` and `--model` are given.
        ServiceNotRunningError: the service can't be started.
    """
    environment = EnvironmentSettings.read()
    options["model"] = arguments.model
    if arguments.local is not None:
        if arguments.model is not None:
            raise LocalModelError("`--model` is for a service. `--local MODEL` names a local one.")
        yield AsyncLocalModel(LocalModel(arguments.local or environment.local_model))
    elif arguments.start is not None or arguments.start_on_ray is not None:
        with Supervisor(
            local_port(environment.url),
            config=arguments.start or arguments.start_on_ray or None,
            use_ray=arguments.start_on_ray is not None,
            on_progress=print_progress,
        ) as supervisor:
            yield AsyncClient(supervisor.url, **options)
    else:
        yield AsyncClient(arguments.url, **options)


def run_and_close(embedder: AsyncEmbedder, coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on an event loop, then closes the embedder on the same loop."""

    async def main() -> T:
        try:
            return await coroutine
        finally:
            await embedder.close()

    return asyncio.run(main())


def print_progress(message: str) -> None:
    """Prints the last line of a message about the start to standard error."""
    last_line = message.splitlines()[-1] if message else ""
    print(f"starting  {last_line}", file=sys.stderr, flush=True)
