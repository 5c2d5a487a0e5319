"""One file for each wire format, and which of them answer on which path."""

from collections import defaultdict
from collections.abc import Mapping

from serve_app.web.dialects import cohere, document_backend, infinity, openai, sidecar, status, tei
from serve_app.web.endpoint import Endpoint, ViewRoute


def endpoints() -> Mapping[str, list[Endpoint]]:
    """What takes JSON, by path; those of one path are told apart by their keys."""
    found = defaultdict[str, list[Endpoint]](list)
    for dialect in (openai, tei, cohere, infinity, sidecar, document_backend):
        for endpoint in dialect.ENDPOINTS:
            found[endpoint.path].append(endpoint)
    return found


def views() -> tuple[ViewRoute, ...]:
    """What takes nothing but its path."""
    return (*openai.VIEWS, *infinity.VIEWS, *document_backend.VIEWS, *status.VIEWS)
