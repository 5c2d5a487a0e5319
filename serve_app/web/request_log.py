"""The request log: one line for each request, without texts and keys. Off by default.

JSON records also have `trace_id` and `span_id` if the request is traced; see `trace_ids`.
`user_config` switches it on: `request_log: true`. Health checks are not logged.
"""

import logging
import time

from serve_app.results import Result
from serve_app.types import Tier
from serve_app.web.exchange import Exchange

#: Its records pass whatever the level of other messages is: the setting switches them.
logger = logging.getLogger("serve_app.requests")
logger.setLevel(logging.INFO)

_MAX_CHARS = 200


def log_request(exchange: Exchange, status: int) -> None:
    """Writes a line. Its fields are also attributes of the record, for JSON formatters.

    Args:
        exchange: the request, its API key, of which the name is logged, its job and its result.
        status: of the response.
    """
    request, key, job, result = exchange.request, exchange.key, exchange.job, exchange.result
    fields = {
        "method": request.method,
        "path": printable(request.scope["path"]),
        "status": status,
        "ms": round(1e3 * (time.perf_counter() - exchange.started_s), 2),
        "texts": 0 if job is None else len(job.inputs),
        "tokens": 0 if result is None else result.billed_tokens,
        "cached": _cached_count(result),
        "model": None if exchange.service is None else exchange.service.spec.name,
        "key": None if key is None else key.name,
        "request_id": printable(request.headers.get("x-request-id", "-")),
    }
    logger.info(
        "%(method)s %(path)s %(status)d %(ms)s ms texts=%(texts)d tokens=%(tokens)d "
        "cached=%(cached)d model=%(model)s key=%(key)s request_id=%(request_id)s",
        fields,
        extra=fields,
    )


def _cached_count(result: Result | None) -> int:
    """Returns the number of texts that the cache served."""
    parts = () if result is None else result.parts
    tiers = [tier for part in parts for tier in part.tiers.tolist()]
    return len(tiers) - tiers.count(Tier.COMPUTED)


def printable(text: str) -> str:
    """Returns a client's text so that it can't look like another line or another field."""
    text = text[:_MAX_CHARS]
    return text if text.isascii() and text.isprintable() and " " not in text else ascii(text)
