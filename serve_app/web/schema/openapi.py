"""The OpenAPI document, made from what the dialects read requests by."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np

from serve_app import __version__
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
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedOperation,
)
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.endpoint import Endpoint, ErrorRenderer, ParsedRequest, ViewRoute
from serve_app.web.headers import of_raw, of_result
from serve_app.web.schema.fields import Scope, record, sample
from serve_app.web.schema.json_schema import STRING, Schema, any_of, enum

_DESCRIPTION = """\
Vectors of texts, in the words of many clients. Fields that a dialect doesn't know are left \
alone; `null` stands for an absent optional field. Each reply names the space of its vectors in \
the header `x-embedding-space`: vectors of two spaces can't be compared. With `Accept: \
application/octet-stream` vectors come as their bytes, little-endian float32 in rows, whose \
number and length the header `x-embedding-schema` tells; with `Cache-Control: no-store` nothing is \
taken from the cache or kept in it. Each reply, errors too, has an `x-request-id`: the client's \
own, or a new one.\
"""
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_PRIORITY = {
    "name": "x-priority",
    "in": "header",
    "description": "Who goes first: somebody waits for `interactive` texts, nobody for `bulk`.",
    "schema": enum(("interactive", "bulk")),
}

#: What an answer may be instead, and what only with keys.
_ALWAYS: Final = (EmbedServeError, Unavailable)
_WITH_KEYS: Final = (Unauthorized, Forbidden)
_WITH_A_BODY: Final = (
    InvalidRequest,
    EmptyInput,
    UnsupportedOperation,
    ModelNotFound,
    BodyTimeout,
    BodyTooLarge,
    UnsupportedMediaType,
    Overloaded,
    InferenceError,
    *_ALWAYS,
    DeadlineExceeded,
)
#: Known before the body is, and so told by the path's first dialect.
_BEFORE_THE_BODY: Final = (Unauthorized, BodyTimeout, BodyTooLarge, UnsupportedMediaType)
_ONE = EmbedResult(
    "",
    np.ones((1, 1), np.float32),
    np.ones(1, np.int32),
    np.ones(1, np.bool_),
    np.ones(1, np.uint8),
)
#: Of the document itself, which no dialect has a word for.
_ITSELF = {
    "/docs": ("This document, for people.", "text/html", STRING),
    "/openapi.json": ("This document, for programs.", "application/json", {"type": "object"}),
}


def openapi(
    scope: Scope,
    endpoints: Mapping[str, Sequence[Endpoint]],
    views: Sequence[ViewRoute],
    *,
    keys: bool = False,
) -> dict[str, Any]:
    """The document, version 3.1.

    Args:
        scope: model and limits, which the schemas tell of.
        endpoints: what takes JSON, by path.
        views: what takes nothing but its path.
        keys: whether clients need a key.
    """
    paths: dict[str, dict[str, Any]] = {}
    for path, found in endpoints.items():
        paths.setdefault(path, {})["post"] = _embedding(path, found, scope, keys)
    for view in views:
        path = re.sub(r":path(?=})", "", view.path)
        paths.setdefault(path, {})[view.method.lower()] = _viewing(path, view, scope, keys)
    for path, (description, media_type, schema) in _ITSELF.items():
        paths[path] = {"get": _showing(path, description, media_type, schema) | {"security": [{}]}}
    every: list[Endpoint | ViewRoute] = [one for found in endpoints.values() for one in found]
    every += views
    refuses: list[ErrorRenderer] = [one.render_error for one in every]
    return {
        "openapi": "3.1.0",
        "info": {"title": "EmbedServe", "version": __version__, "description": _DESCRIPTION},
        "tags": [{"name": name} for name in dict.fromkeys(one.dialect for one in every)],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {_named(render_error): render_error.schema for render_error in refuses},
            "securitySchemes": _SECURITY,
        },
        "security": [*([] if keys else [{}]), *({name: []} for name in _SECURITY)],
    }


def _embedding(path: str, found: Sequence[Endpoint], scope: Scope, keys: bool) -> dict[str, Any]:
    calls = [(endpoint, _embeds(endpoint, scope)) for endpoint in found]
    embedding = [endpoint for endpoint, call in calls if call]
    errors = (*(_WITH_KEYS if keys else ()), *_WITH_A_BODY)
    return {
        "operationId": _name("post", path),
        "tags": [endpoint.dialect for endpoint in found],
        "summary": " ".join(dict.fromkeys(endpoint.description for endpoint in found)),
        "parameters": [_PRIORITY] if embedding else [],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _any(_bodies(found, scope)),
                    "examples": {
                        endpoint.dialect: {"value": sample(endpoint.fields)} for endpoint in found
                    },
                }
            },
        },
        "responses": {
            **_answers(found, embedding, any(call and call.has_vectors for _, call in calls)),
            **_refusals([endpoint.render_error for endpoint in found], errors),
        },
    }


def _bodies(found: Sequence[Endpoint], scope: Scope) -> list[Schema]:
    """Of each endpoint; where one has the field that another is known by, it is the other's."""
    schemas: list[Schema] = []
    for i, endpoint in enumerate(found):
        schema = record(endpoint.fields, scope)
        others = [{"required": [other.key]} for other in found[:i]]
        schemas.append(schema | {"not": _any(others)} if others else schema)
    return schemas


def _embeds(endpoint: Endpoint, scope: Scope) -> ParsedRequest | None:
    """What a request for vectors of texts is read as; None: the route is for something else."""
    try:
        call = endpoint.parse(sample(endpoint.fields), scope.spec)
    except UnsupportedOperation:
        return None
    return call if isinstance(call.job, EmbedJob) else None


def _answers(
    found: Sequence[Endpoint], embedding: Sequence[Endpoint], as_bytes: bool
) -> dict[str, Any]:
    replies = [endpoint.reply for endpoint in found if endpoint.reply]
    if not replies:
        return {}
    content: dict[str, Any] = {"application/json": {"schema": _any(replies)}}
    names = [*_EVERYWHERE]
    if as_bytes:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        names += of_raw(_ONE)
    if embedding:
        names += of_result(_ONE, 0.0)
        names += [name for endpoint in embedding for name in endpoint.headers(_ONE, 0.0)]
    answer = {"description": "What was asked for.", "headers": _headers(names), "content": content}
    return {"200": answer}


def _viewing(path: str, view: ViewRoute, scope: Scope, keys: bool) -> dict[str, Any]:
    media_type = "text/plain" if view.reply == STRING else "application/json"
    names = enum((scope.spec.name, *scope.spec.aliases))
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": names}
        for name in re.findall(r"{(\w+)}", path)
    ]
    errors = (
        *((Unauthorized,) if keys and not view.public else ()),
        *((ModelNotFound,) if parameters else ()),
        *_ALWAYS,
    )
    shown = _showing(path, view.description, media_type, view.reply, view.method)
    content = shown["responses"]["200"]["content"]
    return {
        **shown,
        "tags": [view.dialect],
        **({"security": [{}]} if view.public else {}),
        "parameters": parameters,
        "responses": {
            **shown["responses"],
            **_refusals([view.render_error], errors),
            **{
                str(status): {"description": meaning, "content": content}
                for status, meaning in view.statuses.items()
            },
        },
    }


def _showing(
    path: str, description: str, media_type: str, schema: Schema, method: str = "GET"
) -> dict[str, Any]:
    content = {media_type: {"schema": schema}}
    return {
        "operationId": _name(method.lower(), path),
        "tags": ["status"],
        "summary": description,
        "responses": {"200": {"description": "What was asked for.", "content": content}},
    }


def _refusals(
    refuses: Sequence[ErrorRenderer], errors: Iterable[type[EmbedServeError]]
) -> dict[str, dict[str, Any]]:
    """By status, what is said then; the dialects themselves tell the status of an error."""
    found: dict[str, dict[str, Any]] = {}
    schemas: dict[str, list[Schema]] = {}
    for kind, render_error in product(errors, dict.fromkeys(refuses)):
        if kind in _BEFORE_THE_BODY and render_error is not refuses[0]:
            continue
        refusal = render_error(kind(""))
        status = str(int(refusal.status))
        answer = found.setdefault(status, {"description": "", "headers": {}})
        meaning = _BUG if kind is EmbedServeError else (kind.__doc__ or "").partition("\n")[0]
        if meaning not in answer["description"]:
            answer["description"] = f"{answer['description']} {meaning}".strip()
        names = [*refusal.headers, *(["retry-after"] if kind is Overloaded else [])]
        answer["headers"] |= _headers(names)
        if refusal.body:
            ref = {"$ref": f"#/components/schemas/{_named(render_error)}"}
            schemas.setdefault(status, []).append(ref)
    for status, known in schemas.items():
        found[status]["content"] = {"application/json": {"schema": _any(known)}}
    return dict(sorted(found.items()))


_BUG = "The server failed in a way it did not expect."
#: Headers of every reply of a route.
_EVERYWHERE = ("x-embedding-space",)


def _headers(names: Iterable[str]) -> dict[str, Any]:
    every = (*_EVERYWHERE, "retry-after")
    return {name: {"schema": STRING, "required": name in every} for name in names}


def _named(render_error: ErrorRenderer) -> str:
    """What the schema of a dialect's errors is called."""
    module: str = render_error.__module__
    return f"error_{module.rpartition('.')[2]}"


def _any(schemas: Sequence[Schema]) -> Schema:
    distinct = [schema for i, schema in enumerate(schemas) if schema not in schemas[:i]]
    return distinct[0] if len(distinct) == 1 else any_of(*distinct)


def _name(method: str, path: str) -> str:
    return "_".join([method, *re.findall(r"\w+", path)])
