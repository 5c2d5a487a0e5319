"""`GET /live`: snapshots of the service, as server-sent events or once."""

import math
import time
from collections.abc import Mapping
from typing import Any

import orjson

from serve_app.errors import InvalidRequest, Unavailable, short_repr
from serve_app.live.live_feed import LiveListener
from serve_app.live.snapshot import Snapshot
from serve_app.service.catalog import Catalog
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import openai
from serve_app.web.endpoint import ViewResponse, ViewRoute, ViewStream
from serve_app.web.event_stream import HEARTBEAT, event
from serve_app.web.schema.fields import SchemaContext, StringField
from serve_app.web.schema.json_schema import BOOLEAN, NUMBER, Schema
from serve_app.web.schema.typed_dict import schema_of

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.5, 10.0
_HEARTBEAT_S = 5.0
#: Ray ends each request at `http_options.request_timeout_s`, in the middle of an event. Clients
#: connect again when a stream ends.
_MAX_STREAM_S = 240.0
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


class _IntervalField(StringField):
    """Seconds between two snapshots."""

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {**NUMBER, "minimum": MIN_INTERVAL_S, "maximum": MAX_INTERVAL_S, "default": 1}

    def __call__(self, body: Mapping[str, Any]) -> float:  # type: ignore[override]
        value = body.get(self.name, "1")
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:  # NaN is never within it
            raise InvalidRequest(
                f"`{self.name}` is a number of seconds from {MIN_INTERVAL_S:g} to "
                f"{MAX_INTERVAL_S:g}, not {short_repr(value)}.",
                self.name,
            )
        return seconds


class _OnceField(StringField):
    """Whether to return one snapshot instead of a stream."""

    def _value_schema(self, context: SchemaContext) -> Schema:
        return {**BOOLEAN, "default": False}

    def query_parameter(self, context: SchemaContext) -> dict[str, Any]:
        """Returns the OpenAPI parameter; the examples of `/docs` ask for a reply that ends."""
        return {**StringField.query_parameter(self, context), "example": True}

    def __call__(self, body: Mapping[str, Any]) -> bool:  # type: ignore[override]
        value = body.get(self.name, "false")
        if value not in _BOOLEANS:
            raise InvalidRequest(
                f"`{self.name}` is true or false, not {short_repr(value)}.", self.name
            )
        return _BOOLEANS[value]


_INTERVAL = _IntervalField(
    "interval_s", "Seconds between two snapshots. Rates are those over this time."
)
_ONCE = _OnceField("once", "`true` returns one snapshot as JSON, once its rates are measured.")


async def _live(catalog: Catalog, arguments: Mapping[str, Any]) -> ViewResponse | ViewStream:
    interval_s, once = _INTERVAL(arguments), _ONCE(arguments)
    listener = catalog.live.listen(interval_s)
    if not once:
        return ViewStream(_Events(listener).next, listener.close)
    try:
        snapshot = await listener.next_with_rates()
    finally:
        listener.close()
    if snapshot is None:
        raise Unavailable("The service is shutting down; try again.", 1)
    return ViewResponse(orjson.dumps(snapshot))


class _Events:
    """The events of one client."""

    def __init__(self, listener: LiveListener) -> None:
        self._listener = listener
        self._ends_s = time.monotonic() + _MAX_STREAM_S

    async def next(self) -> bytes | None:
        """Returns the next event, or a heartbeat; None at the end."""
        if time.monotonic() > self._ends_s:
            return None
        snapshot = await self._listener.next(_HEARTBEAT_S)
        if snapshot is not None:
            return event(snapshot)
        return None if self._listener.has_ended else HEARTBEAT


DIALECT = Dialect(
    name="live",
    order=86,
    render_error=openai.render_error,
    error_schema=openai.ERROR_SCHEMA,
    views=(
        ViewRoute(
            path="/live",
            summary="Snapshots of the service as server-sent events: one at once, and then one "
            "each interval. Null stands for what isn't known.",
            respond=_live,
            reply_schema=schema_of(Snapshot),
            has_stream=True,
            query=(_INTERVAL, _ONCE),
        ),
    ),
)
