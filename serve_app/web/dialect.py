"""A dialect: one wire format, with its routes and its error format."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.errors import EmbedServeError
from serve_app.web.endpoint import Endpoint, ViewRoute
from serve_app.web.schema.json_schema import Schema


class ErrorResponse(NamedTuple):
    """An error in the format of a dialect."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One wire format.

    A module in `serve_app.web.dialects` adds a dialect by defining `DIALECT = Dialect(...)`.
    """

    name: str  #: tag of its routes in `/openapi.json`
    render_error: Callable[[EmbedServeError], ErrorResponse]
    error_schema: Schema  #: of the bodies that `render_error` writes
    endpoints: tuple[Endpoint, ...] = ()
    views: tuple[ViewRoute, ...] = ()
    #: Position among the dialects, lowest first. On a shared path the first dialect renders the
    #: errors that occur before the body is read; the first of all renders those of unknown paths.
    order: int = 1000
    #: Whether bodies may come without a media type or as a form, which is curl's default. Requests
    #: with an `Origin` may not: a page of any site can make a browser send forms.
    json_type_optional: bool = False


class DialectEndpoint(NamedTuple):
    """An endpoint and the dialect it belongs to."""

    dialect: Dialect
    endpoint: Endpoint


class DialectView(NamedTuple):
    """A view and the dialect it belongs to."""

    dialect: Dialect
    view: ViewRoute


def endpoints_by_path(dialects: Iterable[Dialect]) -> dict[str, list[DialectEndpoint]]:
    """Returns the endpoints of each path, in the order of the dialects."""
    by_path: dict[str, list[DialectEndpoint]] = {}
    for dialect in dialects:
        for endpoint in dialect.endpoints:
            by_path.setdefault(endpoint.path, []).append(DialectEndpoint(dialect, endpoint))
    return by_path


def all_views(dialects: Iterable[Dialect]) -> list[DialectView]:
    """Returns the views of all dialects."""
    return [DialectView(dialect, view) for dialect in dialects for view in dialect.views]
