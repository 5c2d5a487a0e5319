"""One file for each wire format, and which of them answer on which path."""

from collections import defaultdict
from collections.abc import Mapping

from serve_app.web.dialects import cohere, infinity, native, openai, sidecar, tei
from serve_app.web.endpoint import Endpoint


def endpoints() -> Mapping[str, list[Endpoint]]:
    """All endpoints that give vectors, by path; those of one path are told apart by their keys."""
    found = defaultdict[str, list[Endpoint]](list)
    for dialect in (openai, tei, cohere, infinity, sidecar, native):
        for endpoint in dialect.ENDPOINTS:
            found[endpoint.path].append(endpoint)
    return found
