"""EmbedServe's client: vectors from a service, and from a model at hand while it is away."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from embedserve_client.async_client import AsyncClient
    from embedserve_client.client import Client
    from embedserve_client.errors import (
        BadAddress,
        EmbedError,
        FileError,
        HTTPError,
        IndexMismatch,
        LocalModelError,
        NetworkError,
        NotRunning,
        Overloaded,
        ParseError,
        ServerError,
        SpaceMismatch,
        Timeout,
    )
    from embedserve_client.index import VectorIndex
    from embedserve_client.local import LocalModel
    from embedserve_client.retry import Retry
    from embedserve_client.search import rank
    from embedserve_client.space import Space
    from embedserve_client.supervisor import Supervisor
    from embedserve_client.vectors import Vectors

_ERRORS = (
    "BadAddress",
    "EmbedError",
    "FileError",
    "HTTPError",
    "IndexMismatch",
    "LocalModelError",
    "NetworkError",
    "NotRunning",
    "Overloaded",
    "ParseError",
    "ServerError",
    "SpaceMismatch",
    "Timeout",
)
#: Where each public name lies. They are looked up when they are asked for: the service itself
#: reads this package's definition of a space in each of its processes, and needs no HTTP for that.
_PLACES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "LocalModel": "local",
    "Retry": "retry",
    "Space": "space",
    "Supervisor": "supervisor",
    "VectorIndex": "index",
    "Vectors": "vectors",
    "rank": "search",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = [
    "AsyncClient",
    "BadAddress",
    "Client",
    "EmbedError",
    "FileError",
    "HTTPError",
    "IndexMismatch",
    "LocalModel",
    "LocalModelError",
    "NetworkError",
    "NotRunning",
    "Overloaded",
    "ParseError",
    "Retry",
    "ServerError",
    "Space",
    "SpaceMismatch",
    "Supervisor",
    "Timeout",
    "VectorIndex",
    "Vectors",
    "rank",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
