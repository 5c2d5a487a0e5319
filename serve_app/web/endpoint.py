"""What a dialect says of each of its routes."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedResult, Job
from serve_app.web.schema.fields import Body, Field
from serve_app.web.schema.json_schema import Schema


class ParsedRequest(NamedTuple):
    """A request that was read: what is asked for, and how its reply is written."""

    job: Job
    render: Callable[[Any], bytes]
    has_vectors: bool = True  #: whether the job's vectors themselves are what is asked for


class ErrorResponse(NamedTuple):
    """An error in a dialect's words."""

    status: int
    body: bytes
    headers: Mapping[str, str] = {}


class ErrorRenderer(Protocol):
    """A dialect's way to say no. Its `schema` is that of the body."""

    schema: Schema

    def __call__(self, error: EmbedServeError) -> ErrorResponse:
        """The error, in the dialect's words."""
        ...


def refusal(
    schema: Schema,
) -> Callable[[Callable[[EmbedServeError], ErrorResponse]], ErrorRenderer]:
    """Makes a function into a dialect's `ErrorRenderer`."""

    def named(function: Callable[[EmbedServeError], ErrorResponse]) -> ErrorRenderer:
        function.schema = schema  # type: ignore[attr-defined]
        return function  # type: ignore[return-value]

    return named


def _no_headers(result: EmbedResult, total_s: float) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route that takes a JSON object. Several dialects may share a path; then `key` decides."""

    path: str
    dialect: str
    description: str
    key: str  #: the field that each of its requests has, and no other dialect's on the same path
    fields: tuple[Field, ...]
    #: Reads a JSON object; raises InvalidRequest where it isn't of the dialect's shape.
    parse: Callable[[Body, ModelSpec], ParsedRequest]
    reply: Schema
    render_error: ErrorRenderer
    #: Headers of the dialect's own, from what was computed and the seconds it took in all.
    headers: Callable[[EmbedResult, float], Mapping[str, str]] = _no_headers


class ViewResponse(NamedTuple):
    """What a view shows."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class ViewRoute:
    """A route that takes nothing but its path."""

    path: str
    dialect: str
    description: str
    #: From the service and the path's parameters.
    show: Callable[[EmbedService, Mapping[str, str]], Awaitable[ViewResponse]]
    reply: Schema
    render_error: ErrorRenderer
    method: str = "GET"
    public: bool = False  #: shown to clients without a key
    statuses: Mapping[int, str] = field(default_factory=dict)  #: beside 200, and what they mean
