"""Routes of a dialect: an `Endpoint` runs the job of a JSON body, a `ViewRoute` runs none.

**bytes** → JSON object → `Endpoint.parse` → `ParsedRequest.job` → result → `ParsedRequest.render`
→ **bytes**
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serve_app.access.ledger import Ledger
from serve_app.errors import InvalidRequest, UnsupportedOperation
from serve_app.jobs import Job
from serve_app.models import ModelSpec
from serve_app.results import ComputedResult, Result
from serve_app.service.catalog import Catalog
from serve_app.tasks import Task
from serve_app.web.schema.fields import Body, Field, ModelField
from serve_app.web.schema.json_schema import Schema


class ParsedRequest(NamedTuple):
    """The job of a request, and the function that writes its result as the reply's body."""

    job: Job[Result]
    render: Callable[[Any], bytes]
    has_vectors: bool = True  #: whether the reply holds the vectors, which then may be sent raw
    has_floats: bool = True  #: whether the reply holds the vectors as JSON numbers


def documented_path(path: str) -> str:
    """Returns a path without the converters of its parameters: `{name}`, not `{name:path}`."""
    return re.sub(r":path(?=})", "", path)


def _no_images(body: Body) -> bool:
    return False


def _no_headers(result: ComputedResult, total_s: float) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A `POST` route that takes a JSON object. Parameters of the path replace fields of the body.

    Endpoints of different dialects may share a path. A request then belongs to the first endpoint
    whose `deciding_key` is in its body.
    """

    path: str
    summary: str
    #: A field that every request of this endpoint has, and no request of another on the same path.
    deciding_key: str
    fields: tuple[Field, ...]  #: of the body; those that the path names are its parameters
    #: Reads the body, for the model that it names or the default model of `task`. Raises
    #: InvalidRequest if a field is missing or has a wrong type.
    parse: Callable[[Body, ModelSpec], ParsedRequest]
    reply_schema: Schema
    #: Response headers of the dialect, from the result and the total time in seconds.
    headers: Callable[[ComputedResult, float], Mapping[str, str]] = _no_headers
    task: Task | None = "embed"  #: selects the model of a request that names none; None: any model
    #: Whether a body holds images; `embed_images` then selects the model instead of `task`.
    has_images: Callable[[Body], bool] = _no_images
    #: By main task, the endpoints that answer for models with another main task than `task`. Empty:
    #: this one answers for all models.
    variants: Mapping[Task | None, "Endpoint"] = field(default_factory=dict)
    route: str = field(init=False, repr=False)  #: the path as it is documented
    _model_field: ModelField | None = field(init=False, repr=False)

    def default_task(self, body: Body) -> Task | None:
        """Returns the task that selects the model of a body that names none."""
        return "embed_images" if self.has_images(body) else self.task

    def by_main_task(self) -> Mapping[Task | None, "Endpoint"]:
        """Returns this endpoint and its variants, by the main task of their models."""
        return {self.task: self, **self.variants}

    def for_model(self, spec: ModelSpec, body: Body) -> "Endpoint":
        """Returns the one of several `variants` that answers a body for a model, or this endpoint.

        Raises:
            UnsupportedOperation: none of them answers for models with its main task.
            InvalidRequest: the body is that of another one.
        """
        endpoints = self.by_main_task()
        endpoint = endpoints.get(spec.main_task)
        if endpoint is None:
            raise UnsupportedOperation(
                f"`{self.path}` can't tell what to compute with the model {spec.name!r}, which "
                f"supports {', '.join(spec.tasks)}. Send the request to the route of one of these "
                "tasks.",
                "model",
            )
        key = endpoint.deciding_key
        for other in endpoints.values() if key not in body else ():
            if other.deciding_key in body:
                raise InvalidRequest(
                    f"With the model {spec.name!r}, whose task is `{spec.main_task}`, "
                    f"`{self.path}` takes `{key}`, not `{other.deciding_key}`. Set `model` to "
                    "another model, or send the request to the route of its task.",
                    key,
                )
        return endpoint

    def __post_init__(self) -> None:
        """Finds the field that names the model and the documented path, once."""
        object.__setattr__(self, "route", documented_path(self.path))
        names = (item for item in self.fields if isinstance(item, ModelField))
        object.__setattr__(self, "_model_field", next(names, None))

    def model_name(self, body: Body) -> str | None:
        """Returns the name of the model that a body selects; None: it names none.

        Raises:
            InvalidRequest: the name isn't a string.
        """
        return None if self._model_field is None else self._model_field(body)

    def name_model(self, body: Body, name: str) -> Body:
        """Returns a body that names another model, if bodies of this endpoint name one."""
        return body if self._model_field is None else {**body, self._model_field.name: name}


class ViewResponse(NamedTuple):
    """The response of a view."""

    body: bytes
    status: int = 200


class ViewStream(NamedTuple):
    """A response of server-sent events, which ends when `next` returns None."""

    #: Returns the next part of the stream, in the format of server-sent events.
    next: Callable[[], Awaitable[bytes | None]]
    close: Callable[[], None]  #: called once, however the response ends


class Account(NamedTuple):
    """What a request may know of the costs of API keys."""

    ledger: Ledger
    key: str | None  #: name of the request's key, the only one it may see; None: it may see all


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRoute:
    """A route that runs no job."""

    path: str
    summary: str
    #: Returns the response, from the catalog, and the parameters of the path, the query and the
    #: body.
    respond: Callable[[Catalog, Mapping[str, Any]], Awaitable[ViewResponse | ViewStream]] | None = (
        None
    )
    #: In place of `respond`: returns the response, from costs and the same parameters.
    report_costs: Callable[[Account, Mapping[str, Any]], Awaitable[ViewResponse]] | None = None
    reply_schema: Schema
    method: str = "GET"
    fields: tuple[Field, ...] = ()  #: of the body; empty: the route reads no body
    query: tuple[Field, ...] = ()  #: optional parameters of the query; their values are strings
    media_type: str = "application/json"
    public: bool = False  #: whether clients need no API key
    #: Whether the parameter `model` names the model that answers this client, if it is an alias.
    by_client: bool = False
    #: Whether the reply is a `ViewStream` of JSON, unless the query says otherwise.
    has_stream: bool = False
    #: Statuses in addition to 200 with the same reply, and their meanings.
    statuses: Mapping[int, str] = field(default_factory=dict)

    async def run(
        self, catalog: Catalog, account: Account, arguments: Mapping[str, Any]
    ) -> ViewResponse | ViewStream:
        """Returns the response, from what this route responds with."""
        if self.report_costs is not None:
            return await self.report_costs(account, arguments)
        assert self.respond is not None, f"{self.path} has no response. This is a bug."
        return await self.respond(catalog, arguments)
