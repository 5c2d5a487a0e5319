"""Request headers: raw ASGI headers → a mapping → options of the job."""

import math
import re
from collections.abc import Mapping, Sequence

from serve_app.errors import InvalidRequest, SpaceConflict, short_repr
from serve_app.jobs import Job
from serve_app.results import Result
from serve_app.service.spaces import is_comparable
from serve_app.types import Lane

#: Headers with one value. Proxies in a chain may each add the same one.
_SINGLE_VALUED = frozenset(
    (
        *("api-key", "authorization", "content-type", "x-api-key"),
        *("x-embedding-space", "x-priority", "x-request-timeout-s"),
    )
)

_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)


def decode_headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Returns raw ASGI headers as a dict; values of a repeated list header are joined by a comma.

    One pass over all headers is cheaper than a scan per lookup, as `starlette.Headers` does it.

    Raises:
        InvalidRequest: a header with one value is repeated with another.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name not in headers:
            headers[name] = value
        elif name not in _SINGLE_VALUED:
            headers[name] = f"{headers[name]}, {value}"
        elif headers[name] != value:
            raise InvalidRequest(
                f"The header `{name}` is repeated with different values. Send it once.", name
            )
    return headers


def unfold(value: str) -> str:
    """Returns the value of a header with one value, once if proxies joined equal values by commas.

    Different values stay joined.
    """
    if "," not in value:
        return value
    values = {member.strip() for member in value.split(",")}
    return values.pop() if len(values) == 1 else value


def apply_request_headers(job: Job[Result], headers: Mapping[str, str]) -> Job[Result]:
    """Returns the job with the options that its request's headers set.

    `x-priority` sets the lane; `Cache-Control: no-store` bypasses the cache.

    Raises:
        InvalidRequest: the value of `x-priority` is unknown.
    """
    lane, no_store = _lane(headers), _has_no_store(headers)
    if lane is None and not no_store:
        return job
    return job.with_options(lane=lane, use_cache=False if no_store else None)


def request_timeout_s(headers: Mapping[str, str]) -> float:
    """Returns the time limit that a client sets by `x-request-timeout-s`; infinity without one.

    Raises:
        InvalidRequest: the value is not a positive number.
    """
    value = headers.get("x-request-timeout-s")
    if value is None:
        return math.inf
    if not _NUMBER.fullmatch(value) or not float(value):
        raise InvalidRequest(
            "The header `x-request-timeout-s` must be a positive number of seconds; it was "
            f"{short_repr(value)}.",
            "x-request-timeout-s",
        )
    return float(value)


def require_space(required: str | None, space_id: str) -> None:
    """Checks that a model's vectors can be compared with those of the space that a client requires.

    Args:
        required: the value of `x-embedding-space`; None: the client accepts any space.
        space_id: of the model that is to run.

    Raises:
        SpaceConflict: vectors of the two spaces can't be compared.
    """
    if required is not None and not is_comparable(unfold(required), space_id):
        raise SpaceConflict(
            f"The model's vectors are of the space {space_id}. Those of the space that the request "
            f"requires, {short_repr(required)}, can't be compared with them. Embed the old texts "
            "again, or request the model that they were embedded with.",
            "x-embedding-space",
        )


def _lane(headers: Mapping[str, str]) -> Lane | None:
    priority = headers.get("x-priority")
    if priority is None:
        return None
    match unfold(priority):
        case "interactive":
            return "interactive"
        case "bulk":
            return "bulk"
        case other:
            raise InvalidRequest(
                f"The header `x-priority` must be `interactive` or `bulk`; it was {other!r}.",
                "x-priority",
            )


def _has_no_store(headers: Mapping[str, str]) -> bool:
    """Whether `Cache-Control` holds the directive `no-store` (RFC 9111)."""
    directives = headers.get("cache-control", "").lower().split(",")
    return "no-store" in map(str.strip, directives)
