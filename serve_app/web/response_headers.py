"""Response headers: timings, cache hits, truncated texts, trace context."""

import re
from collections.abc import Mapping, Sequence

from serve_app.cost import Cost, format_usd
from serve_app.results import ComputedResult, EmbedResult
from serve_app.service.validation import replace_invalid_characters
from serve_app.types import Bool, Tier, Timings, UInt8

#: Stages of a request in `Server-Timing` and in the metrics: the fields of `Timings` in order, then
#: the total.
STAGES = ("cache", "queue", "tokenize", "infer", "load", "total")

_HIT_TIERS = (Tier.L1, Tier.L2, Tier.JOINED)

#: `traceparent` of W3C Trace Context: version 00, or a later one with more fields.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?![^-])"
)


def trace_headers(request_headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the client's `traceparent`, or nothing where it is absent or malformed.

    Ray Serve echoes `x-request-id` itself, and generates a new id if the client sent none.
    """
    parent = request_headers.get("traceparent")
    return {"traceparent": parent} if parent and _TRACEPARENT.match(parent) else {}


def result_headers(result: ComputedResult, total_s: float) -> dict[str, str]:
    """Returns `server-timing`, `x-cache`, and `x-truncated-inputs` where texts were truncated."""
    return {
        "server-timing": server_timing(result.timings, total_s),
        "x-cache": cache_summary(result.tiers),
        **truncation_headers(result.truncated),
    }


def truncation_headers(truncated: Bool) -> dict[str, str]:
    """Returns `x-truncated-inputs`, or nothing where no text was truncated.

    Args:
        truncated: shape (n,), for all texts of the reply.
    """
    flags: list[bool] = truncated.tolist()
    return {"x-truncated-inputs": index_ranges(flags)} if True in flags else {}


def cost_headers(cost: Cost) -> dict[str, str]:
    """Returns `x-cost-usd`, such as `0.000000020`."""
    return {"x-cost-usd": format_usd(cost.nano_usd)}


def replacement_headers(inputs: Sequence[object]) -> dict[str, str]:
    """Returns `x-replaced-inputs`, or nothing where no text holds an invalid character.

    Args:
        inputs: the request's texts, before the service replaces characters.
    """
    flags = [text != replace_invalid_characters(text) for text in inputs]
    return {"x-replaced-inputs": index_ranges(flags)} if True in flags else {}


def raw_vector_headers(result: EmbedResult) -> dict[str, str]:
    """Returns the headers that a client needs to decode a body of raw float32 vectors."""
    n, dim = result.vectors.shape
    return {
        "x-embedding-shape": f"{n},{dim}",
        "x-embedding-dtype": "float32",
        "x-embedding-model": result.model,
        "x-embedding-tokens": str(result.total_tokens),
    }


def cache_summary(tiers: UInt8) -> str:
    """Returns the value of `x-cache`, such as `hits=2; misses=1; tier=l1,l2`.

    A text that the engine computed for another request is a hit of the tier `joined`.

    Args:
        tiers: shape (n,); the `Tier` of each text.
    """
    values = tiers.tolist()
    misses = values.count(Tier.COMPUTED)
    summary = f"hits={len(values) - misses}; misses={misses}"
    hit_tiers = ",".join(tier.name.lower() for tier in _HIT_TIERS if tier in values)
    return f"{summary}; tier={hit_tiers}" if hit_tiers else summary


def server_timing(timings: Timings, total_s: float) -> str:
    """Returns the value of `Server-Timing` (W3C), with durations in milliseconds."""
    durations = [*zip(STAGES, (*timings, total_s), strict=True)]
    if not timings.load_s:
        del durations[-2]
    return ", ".join([f"{stage};dur={1e3 * seconds:.2f}" for stage, seconds in durations])


def index_ranges(flags: Sequence[bool]) -> str:
    """Returns the indices of True as ranges, such as `0,4-7,9`."""
    ranges: list[str] = []
    start: int | None = None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            ranges.append(str(start) if start == i - 1 else f"{start}-{i - 1}")
            start = None
    return ",".join(ranges)
