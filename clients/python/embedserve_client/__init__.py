"""The Python client of EmbedServe: embeddings from the service, or from a local fallback model."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from embedserve_client.async_client import AsyncClient
    from embedserve_client.classify import LabelScore
    from embedserve_client.client import Client
    from embedserve_client.errors import (
        DatabaseError,
        EmbedError,
        FileError,
        HTTPError,
        IndexMismatchError,
        InvalidURLError,
        LocalModelError,
        NetworkError,
        ParseError,
        RateLimitError,
        RequestTimeoutError,
        ServerError,
        ServiceNotRunningError,
        SpaceConflictError,
        SpaceMismatchError,
    )
    from embedserve_client.index import VectorIndex
    from embedserve_client.local_model import LocalModel
    from embedserve_client.rerank import RerankResult
    from embedserve_client.search import rank
    from embedserve_client.space import Space
    from embedserve_client.sparse import SparseVector
    from embedserve_client.supervisor import Supervisor
    from embedserve_client.vectors import Vectors

#: The module of each public name. Names are imported on first access: the service imports
#: `model_files` in each of its processes and must not load an HTTP client for that.
_MODULES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "DatabaseError": "errors",
    "EmbedError": "errors",
    "FileError": "errors",
    "HTTPError": "errors",
    "IndexMismatchError": "errors",
    "InvalidURLError": "errors",
    "LabelScore": "classify",
    "LocalModel": "local_model",
    "LocalModelError": "errors",
    "NetworkError": "errors",
    "ParseError": "errors",
    "RateLimitError": "errors",
    "RequestTimeoutError": "errors",
    "RerankResult": "rerank",
    "ServerError": "errors",
    "ServiceNotRunningError": "errors",
    "Space": "space",
    "SpaceConflictError": "errors",
    "SpaceMismatchError": "errors",
    "SparseVector": "sparse",
    "Supervisor": "supervisor",
    "VectorIndex": "index",
    "Vectors": "vectors",
    "rank": "search",
}

__all__ = [
    "AsyncClient",
    "Client",
    "DatabaseError",
    "EmbedError",
    "FileError",
    "HTTPError",
    "IndexMismatchError",
    "InvalidURLError",
    "LabelScore",
    "LocalModel",
    "LocalModelError",
    "NetworkError",
    "ParseError",
    "RateLimitError",
    "RequestTimeoutError",
    "RerankResult",
    "ServerError",
    "ServiceNotRunningError",
    "Space",
    "SpaceConflictError",
    "SpaceMismatchError",
    "SparseVector",
    "Supervisor",
    "VectorIndex",
    "Vectors",
    "rank",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
