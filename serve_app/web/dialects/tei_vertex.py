"""Vertex AI's format of TEI, `POST /vertex`: a list of the bodies of another route.

Bodies with `query` and `texts` are those of `/rerank`; others those of the model's kind, as in TEI.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.jobs import BatchJob, QueuedJob
from serve_app.models import ModelSpec
from serve_app.results import BatchResult, ComputedResult
from serve_app.tasks import Task
from serve_app.web.dialects import tei_scores
from serve_app.web.dialects.extensions import MODEL
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    Field,
    ObjectField,
    SchemaContext,
    object_schema,
)
from serve_app.web.schema.json_schema import Schema, any_of, array, object_


@dataclass(frozen=True, slots=True)
class _InstancesField(ObjectField):
    """Bodies of a route, and perhaps of another one."""

    other_fields: tuple[Field, ...] = ()  #: of the other route

    def _value_schema(self, context: SchemaContext) -> Schema:
        schema = ObjectField._value_schema(self, context)
        if self.other_fields:
            other = object_schema(self.other_fields, context)
            schema = schema | {"items": any_of(schema["items"], other)}
        return schema


def endpoint_of(
    item: Endpoint, *, task: Task | None = None, other: Endpoint | None = None
) -> Endpoint:
    """Returns the endpoint that takes a list of the bodies of another endpoint.

    Args:
        item: the endpoint of the bodies.
        task: the main task of the models that it answers for; None: that of `item`.
        other: another endpoint whose bodies may be in the list.
    """
    routes, reply = f"`{item.path}`", item.reply_schema
    if other is not None:
        routes, reply = f"`{other.path}` or {routes}", any_of(other.reply_schema, reply)
    instances = _InstancesField(
        "instances",
        f"Bodies of {routes}.",
        required=True,
        fields=_without_model(item),
        many=True,
        count_as_texts=True,
        other_fields=_without_model(other) if other else (),
    )
    return replace(
        item,
        path="/vertex",
        summary="Compute what the model is made for, for a list of bodies of its own route.",
        deciding_key=instances.name,
        fields=(instances, MODEL),
        parse=partial(_parse, instances=instances, parse_item=item.parse),
        reply_schema=object_({"predictions": array(reply)}),
        task=task or item.task,
    )


def _without_model(endpoint: Endpoint) -> tuple[Field, ...]:
    return tuple(field for field in endpoint.fields if field is not MODEL)


def _parse(
    body: Body,
    spec: ModelSpec,
    *,
    instances: ObjectField,
    parse_item: Callable[[Body, ModelSpec], ParsedRequest],
) -> ParsedRequest:
    """Parses a list of bodies.

    Raises:
        InvalidRequest: a field is missing, has a wrong type or an unknown value.
        UnsupportedOperation: the model doesn't support the task of a body.
    """
    items = instances(body)
    if items is None:
        raise InvalidRequest("`instances` is missing. Send a list of objects.", "instances")
    if not items:
        raise EmptyInput("`instances` is empty. Send at least one.", "instances")
    requests = [
        (tei_scores.parse_rerank if {"query", "texts"} <= item.keys() else parse_item)(item, spec)
        for item in items
    ]
    jobs = tuple(cast(QueuedJob[ComputedResult], request.job) for request in requests)
    renderers = [request.render for request in requests]
    return ParsedRequest(BatchJob(jobs), partial(_render, renderers=renderers))


def _render(results: BatchResult, *, renderers: Sequence[Callable[[Any], bytes]]) -> bytes:
    predictions = (render(result) for render, result in zip(renderers, results, strict=True))
    return b'{"predictions":[' + b",".join(predictions) + b"]}"
