"""What headers say: those of a request that change its job, and those that every reply has."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.errors import InvalidRequest
from serve_app.types import (
    BatchJob,
    EmbedJob,
    EmbedResult,
    Job,
    Lane,
    Tier,
    Timings,
    TokenVectors,
    TokenVectorsJob,
    UInt8,
)

#: What `Timings` tells of, in its order, and the whole.
STAGES = ("cache", "queue", "tokenize", "infer", "total")

#: W3C Trace Context, version 00 and later ones.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?![^-])"
)


def read(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as ASGI hands them over, for looking up many of them; repeated ones are one list."""
    found: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def trace(given: Mapping[str, str]) -> dict[str, str]:
    """The context of the client's trace, as it was sent; what isn't well-formed is left out.

    `x-request-id` comes back, too: that is Ray's doing, which also makes one where there is none.
    """
    parent = given.get("traceparent")
    return {"traceparent": parent} if parent and _TRACEPARENT.match(parent) else {}


def apply_request_headers(job: Job, given: Mapping[str, str]) -> Job:
    """The job with what its headers add: who can wait, and whether the cache may help."""
    lane, no_store = _lane(given), _no_store(given)
    if lane is None and not no_store:
        return job

    def changed(one: EmbedJob) -> EmbedJob:
        return replace(one, lane=lane or one.lane, use_cache=one.use_cache and not no_store)

    match job:
        case EmbedJob():
            return changed(job)
        case TokenVectorsJob():
            return TokenVectorsJob(changed(job.job))
        case BatchJob():
            return BatchJob(tuple(map(changed, job.jobs)))
        case _:
            return job


def _lane(given: Mapping[str, str]) -> Lane | None:
    match given.get("x-priority"):
        case None:
            return None
        case "interactive":
            return "interactive"
        case "bulk":
            return "bulk"
        case other:
            raise InvalidRequest(
                f"The header `x-priority` must be `interactive` or `bulk`; it was {other!r}.",
                "x-priority",
            )


def _no_store(given: Mapping[str, str]) -> bool:
    """Whether the client asks that nothing is taken from a cache or kept in one (RFC 9111)."""
    directives = given.get("cache-control", "").lower().split(",")
    return "no-store" in map(str.strip, directives)


def of_result(result: EmbedResult, total_s: float) -> dict[str, str]:
    """Where the time went, what the cache knew, and which texts were cut."""
    found = {
        "server-timing": server_timing(result.timings, total_s),
        "x-cache": cache_header(result.tiers),
    }
    return found | of_cut([result])


def of_cut(results: Sequence[Any]) -> dict[str, str]:
    """Which texts were cut, counted over all that a reply holds."""
    flags: list[bool] = []
    for one in results:
        if isinstance(one, EmbedResult):
            flags.extend(one.truncated.tolist())
        elif isinstance(one, TokenVectors):
            flags.append(one.truncated)
    return {"x-truncated-inputs": index_ranges(flags)} if True in flags else {}


def of_raw(result: EmbedResult) -> dict[str, str]:
    """What is needed to read vectors that come as nothing but their bytes."""
    n, dim = result.vectors.shape
    return {
        "x-embedding-shape": f"{n},{dim}",
        "x-embedding-dtype": "float32",
        "x-embedding-model": result.model,
        "x-embedding-tokens": str(result.total_tokens),
    }


def cache_header(tiers: UInt8) -> str:
    """The header's value: what came from the cache, what not, and from which tiers."""
    came = tiers.tolist()
    misses = came.count(Tier.COMPUTED)
    value = f"hits={len(came) - misses}; misses={misses}"
    hit = ",".join(tier.name.lower() for tier in (Tier.L1, Tier.L2) if tier in came)
    return f"{value}; tier={hit}" if hit else value


def server_timing(timings: Timings, total_s: float) -> str:
    """The header's value (W3C Server Timing), in milliseconds."""
    spent = zip(STAGES, (*timings, total_s), strict=True)
    return ", ".join(f"{stage};dur={1e3 * seconds:.2f}" for stage, seconds in spent)


def index_ranges(flags: Sequence[bool]) -> str:
    """The places of True, as in `0,4-7,9`."""
    ranges: list[str] = []
    start: int | None = None
    for i, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            ranges.append(str(start) if start == i - 1 else f"{start}-{i - 1}")
            start = None
    return ",".join(ranges)
