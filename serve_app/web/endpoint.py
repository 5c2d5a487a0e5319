"""What a dialect says of each of its routes that gives vectors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.errors import EmbedServeError
from serve_app.models import ModelSpec
from serve_app.types import EmbedJob, EmbedResult


class Call(NamedTuple):
    """A request that was read: what is asked for, and how its reply is written."""

    job: EmbedJob
    render: Callable[[EmbedResult], bytes]


class Refusal(NamedTuple):
    """An error in a dialect's words."""

    status: int
    body: bytes


def _no_headers(result: EmbedResult, total_s: float) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route of one dialect. Several dialects may share a path; then `key` decides."""

    path: str
    key: str  #: the field that each of its requests has, and no other dialect's on the same path
    #: Reads a JSON object; raises InvalidRequest where it isn't of the dialect's shape.
    parse: Callable[[Mapping[str, Any], ModelSpec], Call]
    refuse: Callable[[EmbedServeError], Refusal]
    #: Headers of the dialect's own, from what was computed and the seconds it took in all.
    headers: Callable[[EmbedResult, float], Mapping[str, str]] = _no_headers
