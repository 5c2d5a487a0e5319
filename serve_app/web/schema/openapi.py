"""The OpenAPI document, generated from the fields that parse requests and the types of replies."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np

from serve_app import __version__
from serve_app.cost import Cost
from serve_app.errors import (
    BodyTimeout,
    BodyTooLarge,
    DeadlineExceeded,
    EmbedServeError,
    EmptyInput,
    Forbidden,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    SpaceConflict,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedOperation,
    UpstreamError,
)
from serve_app.jobs import BatchJob, EmbedJob
from serve_app.results import EmbedResult
from serve_app.web.dialect import (
    Dialect,
    DialectEndpoint,
    DialectView,
    all_views,
    endpoints_by_path,
)
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewRoute, documented_path
from serve_app.web.response_headers import cost_headers, raw_vector_headers, result_headers
from serve_app.web.schema.fields import Field, SchemaContext, object_example, object_schema
from serve_app.web.schema.header_parameters import header_parameters
from serve_app.web.schema.json_schema import STRING, Schema, any_of, enum

_DESCRIPTION = """\
Text embeddings in the request formats of many APIs. Unknown fields are ignored; an optional field \
that is `null` counts as absent. The response header `x-embedding-space` names the vector space: \
vectors of different spaces can't be compared. If a model of another space answers in place of the \
requested one, `x-embedding-model` names it. With `Accept: application/octet-stream` the body \
holds raw vectors, row by row in little-endian float32, and the header `x-embedding-shape` their \
number and dimension. `Cache-Control: no-store` bypasses the cache. Every response, errors \
included, has an `x-request-id`: the client's own, or a generated one.\
"""
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "azure": {"type": "apiKey", "in": "header", "name": "api-key"},
}

#: Errors of every route; of routes that check keys; that read a body; and that run a job.
_ALWAYS: Final = (EmbedServeError, Unavailable)
_WITH_KEYS: Final = (Unauthorized, Forbidden)
_WITH_FIELDS: Final = (
    InvalidRequest,
    ModelNotFound,
    BodyTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
)
_WITH_BODY: Final = (
    *_WITH_FIELDS,
    EmptyInput,
    UnsupportedOperation,
    SpaceConflict,
    Overloaded,
    InferenceError,
    UpstreamError,
    *_ALWAYS,
    DeadlineExceeded,
)
#: Errors before the body selects an endpoint, which the path's first dialect renders.
_BEFORE_BODY: Final = (Unauthorized, BodyTimeout, BodyTooLarge, UnsupportedMediaType)
#: Stands for `EmbedServeError` itself, whose docstring describes the class.
_UNEXPECTED_ERROR = "The server failed in a way it did not expect."
_SUCCESS = "Success."
#: Yields the names of the headers that depend on a result.
_EXAMPLE_RESULT = EmbedResult(
    "",
    np.ones((1, 1), np.float32),
    np.ones(1, np.int32),
    np.ones(1, np.bool_),
    np.ones(1, np.uint8),
)
#: Headers of every response.
_COMMON_HEADERS = ("x-embedding-space",)
_STATUS_TAG = "status"
#: Routes of the documentation itself, which belong to no dialect.
_DOCUMENTATION = {
    "/docs": ("This documentation as a page.", "text/html", STRING),
    "/openapi.json": ("This documentation as OpenAPI.", "application/json", {"type": "object"}),
}


def openapi(
    context: SchemaContext, dialects: Sequence[Dialect], *, keys: bool = False
) -> dict[str, Any]:
    """Returns the document, version 3.1.

    Args:
        context: the model and the limits that the schemas depend on.
        dialects: all dialects that are served.
        keys: whether clients need an API key.
    """
    paths: dict[str, dict[str, Any]] = {}
    for template, candidates in endpoints_by_path(dialects).items():
        path = documented_path(template)
        paths[path] = {"post": _endpoint_operation(path, candidates, context, keys)}
    for route in all_views(dialects):
        path = documented_path(route.view.path)
        method = route.view.method.lower()
        paths.setdefault(path, {})[method] = _view_operation(path, route, context, keys)
    for path, (summary, media_type, schema) in _DOCUMENTATION.items():
        paths[path] = {
            "get": {
                "operationId": _operation_id("get", path),
                "tags": [_STATUS_TAG],
                "summary": summary,
                "responses": {"200": _response(media_type, schema)},
                "security": [{}],
            }
        }
    tags = dict.fromkeys([*(dialect.name for dialect in dialects), _STATUS_TAG])
    return {
        "openapi": "3.1.0",
        "info": {"title": "EmbedServe", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": name} for name in tags],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {_error_schema_name(dialect): dialect.error_schema for dialect in dialects},
            "securitySchemes": _SECURITY,
        },
        "security": [*([] if keys else [{}]), *({name: []} for name in _SECURITY)],
    }


class _Candidate(NamedTuple):
    """One of the endpoints of a path."""

    dialect: Dialect
    endpoint: Endpoint
    context: SchemaContext  #: with the models that it answers for, its default model first
    needs_model: bool = False  #: whether a body without `model` belongs to another endpoint


def _candidates(endpoints: Iterable[DialectEndpoint], context: SchemaContext) -> list[_Candidate]:
    return [
        candidate
        for dialect, endpoint in endpoints
        for candidate in _variants(dialect, endpoint, context)
    ]


def _variants(dialect: Dialect, endpoint: Endpoint, context: SchemaContext) -> Iterator[_Candidate]:
    """Yields an endpoint, or those of its variants that answer for the served models."""
    variants = endpoint.by_main_task() if endpoint.variants else {}
    tasks = dict.fromkeys(spec.main_task for spec in context.specs if spec.main_task in variants)
    for task in tasks:
        specs = tuple(spec for spec in context.specs if spec.main_task == task)
        own = context._replace(specs=specs).for_task(task)
        yield _Candidate(dialect, variants[task], own, task != context.spec.main_task)
    if not tasks:
        yield _Candidate(dialect, endpoint, context.for_task(endpoint.task))


def _endpoint_operation(
    path: str, endpoints: Sequence[DialectEndpoint], context: SchemaContext, keys: bool
) -> dict[str, Any]:
    candidates = _candidates(endpoints, context)
    parsed = [(candidate.endpoint, _parse_example(candidate)) for candidate in candidates]
    embedding = [
        endpoint
        for endpoint, request in parsed
        if request and not isinstance(request.job, BatchJob)
    ]
    has_vectors = any(
        request and request.has_vectors and isinstance(request.job, EmbedJob)
        for _, request in parsed
    )
    errors = (*(_WITH_KEYS if keys else ()), *_WITH_BODY)
    summaries = dict.fromkeys(endpoint.summary for _, endpoint in endpoints)
    return {
        "operationId": _operation_id("post", path),
        "tags": [dialect.name for dialect, _ in endpoints],
        "summary": " ".join(summaries),
        "parameters": [
            *_path_parameters(path, context),
            *header_parameters(context, has_lanes=bool(embedding)),
        ],
        "requestBody": _request_body(
            _any_distinct(_body_schemas(candidates)), _examples(candidates)
        ),
        "responses": {
            **_success_responses(
                candidates,
                embedding,
                has_vectors,
                runs_model=any(request for _, request in parsed),
            ),
            **_error_responses([dialect for dialect, _ in endpoints], errors),
        },
    }


def _request_body(schema: Schema, examples: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: {"value": example} for name, example in examples.items()}
    content = {"application/json": {"schema": schema, "examples": values}}
    return {"required": True, "content": content}


def _path_parameters(path: str, context: SchemaContext) -> list[dict[str, Any]]:
    """Returns the parameters of a path; each is the name of a model."""
    model_names = enum(context.model_names)
    return [
        {"name": name, "in": "path", "required": True, "schema": model_names}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _body_schemas(candidates: Sequence[_Candidate]) -> list[Schema]:
    """Returns the schema of each candidate; it excludes the deciding keys of earlier dialects."""
    schemas: list[Schema] = []
    for i, (dialect, endpoint, context, needs_model) in enumerate(candidates):
        schema = object_schema(_body_fields(endpoint), context)
        if needs_model:
            schema["required"] = [*schema["required"], "model"]
        earlier = [
            {"required": [other.endpoint.deciding_key]}
            for other in candidates[:i]
            if other.dialect is not dialect
        ]
        schemas.append(schema | {"not": _any_distinct(earlier)} if earlier else schema)
    return schemas


def _examples(candidates: Sequence[_Candidate]) -> dict[str, Any]:
    """Returns an example of each candidate, by dialect, or else by dialect and task."""
    examples: dict[str, Any] = {}
    for dialect, endpoint, context, needs_model in candidates:
        name = f"{dialect.name}, {endpoint.task}" if dialect.name in examples else dialect.name
        model = {"model": context.spec.name} if needs_model else {}
        examples[name] = object_example(_body_fields(endpoint)) | model
    return examples


def _body_fields(endpoint: Endpoint) -> tuple[Field, ...]:
    """Returns the fields that aren't parameters of the path."""
    names = re.findall(r"{(\w+)", endpoint.path)
    return tuple(field for field in endpoint.fields if field.name not in names)


def _parse_example(candidate: _Candidate) -> ParsedRequest | None:
    """Returns the endpoint's parsed example; None if no model runs it."""
    endpoint = candidate.endpoint
    try:
        parsed = endpoint.parse(object_example(endpoint.fields), candidate.context.spec)
    except UnsupportedOperation:
        return None
    return parsed if parsed.job.tasks else None


def _success_responses(
    candidates: Sequence[_Candidate],
    embedding: Sequence[Endpoint],
    has_vectors: bool,
    *,
    runs_model: bool,
) -> dict[str, Any]:
    replies = [candidate.endpoint.reply_schema for candidate in candidates]
    response = _response("application/json", _any_distinct(replies))
    names = [*_COMMON_HEADERS]
    if has_vectors:
        binary = {"schema": {"type": "string", "format": "binary"}}
        response["content"]["application/octet-stream"] = binary
        names += raw_vector_headers(_EXAMPLE_RESULT)
    if embedding:
        names += result_headers(_EXAMPLE_RESULT, 0.0)
        names += [name for endpoint in embedding for name in endpoint.headers(_EXAMPLE_RESULT, 0.0)]
    if runs_model:
        names += cost_headers(Cost())
    return {"200": response | {"headers": _header_objects(names)}}


def _view_operation(
    path: str, route: DialectView, context: SchemaContext, keys: bool
) -> dict[str, Any]:
    dialect, view = route
    path_parameters = _path_parameters(path, context)
    errors = (
        *((Unauthorized,) if keys and not view.public else ()),
        *((ModelNotFound,) if path_parameters else ()),
        *(_WITH_FIELDS if view.fields else (InvalidRequest,) if view.query else ()),
        *((Overloaded, Unavailable) if view.has_stream else ()),
        *_ALWAYS,
    )
    request_body = _request_body(
        object_schema(view.fields, context), {dialect.name: object_example(view.fields)}
    )
    media_type = view.media_type.partition(";")[0]
    return {
        "operationId": _operation_id(view.method.lower(), path),
        "tags": [dialect.name],
        "summary": view.summary,
        **({"security": [{}]} if view.public else {}),
        "parameters": [
            *path_parameters,
            *(field.query_parameter(context) for field in view.query),
        ],
        **({"requestBody": request_body} if view.fields else {}),
        "responses": {
            "200": _with_stream(view, _response(media_type, view.reply_schema)),
            **_error_responses([dialect], errors),
            **{
                str(status): _response(media_type, view.reply_schema, meaning)
                for status, meaning in view.statuses.items()
            },
        },
    }


def _with_stream(view: ViewRoute, response: dict[str, Any]) -> dict[str, Any]:
    """Adds the stream of events of a view that has one to its response."""
    if not view.has_stream:
        return response
    return {**response, "content": {"text/event-stream": {"schema": STRING}, **response["content"]}}


def _response(media_type: str, schema: Schema, description: str = _SUCCESS) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _error_responses(
    dialects: Sequence[Dialect], errors: Iterable[type[EmbedServeError]]
) -> dict[str, dict[str, Any]]:
    """Returns the error responses by status, which each dialect's renderer decides."""
    responses: dict[str, dict[str, Any]] = {}
    schemas: dict[str, list[Schema]] = {}
    for error_class, dialect in product(errors, dialects):
        if error_class in _BEFORE_BODY and dialect is not dialects[0]:
            continue
        error_response = dialect.render_error(error_class(""))
        status = str(int(error_response.status))
        response = responses.setdefault(status, {"description": "", "headers": {}})
        meaning = _meaning(error_class)
        if meaning not in response["description"]:
            response["description"] = f"{response['description']} {meaning}".strip()
        retry_after = ["retry-after"] if error_class is Overloaded else []
        response["headers"] |= _header_objects([*error_response.headers, *retry_after])
        if error_class is Unavailable:  # nobody knows when a replica is back
            response["headers"]["retry-after"] = {"schema": STRING, "required": False}
        if error_response.body:
            reference = {"$ref": f"#/components/schemas/{_error_schema_name(dialect)}"}
            schemas.setdefault(status, []).append(reference)
    for status, references in schemas.items():
        responses[status]["content"] = {"application/json": {"schema": _any_distinct(references)}}
    return dict(sorted(responses.items()))


def _meaning(error_class: type[EmbedServeError]) -> str:
    if error_class is EmbedServeError:
        return _UNEXPECTED_ERROR
    return (error_class.__doc__ or "").partition("\n")[0]


def _header_objects(names: Iterable[str]) -> dict[str, Any]:
    required = (*_COMMON_HEADERS, "retry-after")
    return {name: {"schema": STRING, "required": name in required} for name in names}


def _error_schema_name(dialect: Dialect) -> str:
    return "error_" + "_".join(re.findall(r"\w+", dialect.name.lower()))


def _any_distinct(schemas: Sequence[Schema]) -> Schema:
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    return distinct[0] if len(distinct) == 1 else any_of(*distinct)


def _operation_id(method: str, path: str) -> str:
    return "_".join([method, *re.findall(r"\w+", path)])
