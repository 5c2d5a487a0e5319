"""KServe's V2 format, the Open Inference Protocol: tensors of strings → tensors of vectors.

The texts are the `BYTES` tensor `text`, or the first tensor of this type, of shape [n] or [n, 1].
The vectors are the `FP32` tensor `embedding` of shape [n, dimensions].
"""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict

import orjson

from serve_app import __version__
from serve_app.errors import InvalidRequest, ModelNotFound, UnsupportedOperation, short_repr
from serve_app.models import ModelSpec
from serve_app.service.embed import EmbedService
from serve_app.types import EmbedJob, EmbedResult
from serve_app.web.dialect import Dialect
from serve_app.web.dialects import sidecar
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.dialects.status import UNHEALTHY_STATUSES
from serve_app.web.endpoint import Endpoint, ParsedRequest, ViewResponse, ViewRoute
from serve_app.web.schema.fields import Body, Field, ModelField, SchemaContext, StringField
from serve_app.web.schema.json_schema import INTEGER, STRING, VECTOR, Schema, any_of, array, object_
from serve_app.web.schema.typed_dict import schema_of

_INPUT, _OUTPUT = "text", "embedding"
_EXTENSION = "The binary tensor data extension isn't supported. Send and request JSON data"


class _TextTensorField(Field):
    """A list of tensors, one of which holds the texts."""

    __slots__ = ()

    def __call__(self, body: Body) -> tuple[str, ...]:
        """Returns the texts. The service validates each of them."""
        tensors = body.get(self.name)
        if not isinstance(tensors, list) or not all(isinstance(item, dict) for item in tensors):
            raise InvalidRequest(f"`{self.name}` must be a list of tensors.", self.name)
        for tensor in tensors:
            _reject_binary(tensor, "binary_data_size", self.name)
        texts = [tensor for tensor in tensors if tensor.get("datatype") == "BYTES"]
        texts.sort(key=lambda tensor: tensor.get("name") != _INPUT)
        if not texts:
            raise InvalidRequest(
                f"`{self.name}` has no tensor of the datatype BYTES. Send the texts as one.",
                self.name,
            )
        return self._texts(texts[0])

    def _texts(self, tensor: Body) -> tuple[str, ...]:
        shape, data = tensor.get("shape"), tensor.get("data")
        if not isinstance(data, list):
            raise InvalidRequest("`data` of the tensor must be a list of strings.", "data")
        flat = [text for row in data for text in (row if isinstance(row, list) else [row])]
        if shape not in ([len(flat)], [len(flat), 1]):
            raise InvalidRequest(
                f"`shape` of the tensor must be [{len(flat)}] or [{len(flat)}, 1] for its data; it "
                f"was {short_repr(shape)}.",
                "shape",
            )
        return tuple(flat)

    def _value_schema(self, context: SchemaContext) -> Schema:
        max_chars = context.settings.max_text_chars
        text = STRING | {"minLength": 1, "maxLength": max_chars, "pattern": r"^[^\u0000]*$"}
        item = any_of(text, array(text, minItems=1, maxItems=1))
        tensor = {
            "name": STRING,
            "shape": array(INTEGER, minItems=1, maxItems=2),
            "datatype": {"const": "BYTES"},
            "data": array(item, minItems=1, maxItems=context.settings.max_texts_per_request),
        }
        return array(object_(tensor, optional=("name",)), minItems=1)

    def example(self) -> Any:
        """Returns a tensor of one text."""
        return [{"name": _INPUT, "shape": [1], "datatype": "BYTES", "data": ["Hello, world"]}]


class _OutputsField(Field):
    """The requested output tensors."""

    __slots__ = ()

    def __call__(self, body: Body) -> None:
        """Checks that nothing but the vectors is requested, as JSON."""
        outputs = body.get(self.name)
        if outputs is None:
            return
        if not isinstance(outputs, list) or not all(isinstance(item, dict) for item in outputs):
            raise InvalidRequest(f"`{self.name}` must be a list of objects.", self.name)
        for output in outputs:
            if output.get("name") != _OUTPUT:
                raise InvalidRequest(
                    f"The model has no output {short_repr(output.get('name'))}. Its only output is "
                    f"'{_OUTPUT}'.",
                    self.name,
                )
            _reject_binary(output, "binary_data", self.name)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return array(object_({"name": {"const": _OUTPUT}}))


class _ParametersField(Field):
    """The parameters of a request, none of which changes the result."""

    __slots__ = ()

    def __call__(self, body: Body) -> None:
        """Checks that binary output isn't requested."""
        if body.get(self.name) is not None:
            _reject_binary(body, "binary_data_output", self.name)

    def _value_schema(self, context: SchemaContext) -> Schema:
        return object_({})


_ID = StringField("id", "Identifier of the request, which the reply repeats.")
_MODEL = ModelField("model", "Name or alias of the served model.")
_INPUTS = _TextTensorField(
    "inputs", "Tensors; the texts are the `BYTES` tensor `text`, or the first one.", required=True
)
_OUTPUTS = _OutputsField("outputs", "The tensors to return; only `embedding` exists.")
_PARAMETERS = _ParametersField("parameters", "Accepted for compatibility and ignored.")


def _reject_binary(holder: Body, name: str, field: str) -> None:
    """Checks the parameters of a request or of a tensor.

    Raises:
        InvalidRequest: the parameters aren't an object.
        UnsupportedOperation: the parameter `name` requests binary data.
    """
    parameters = holder.get("parameters")
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise InvalidRequest("`parameters` must be an object.", field)
    if parameters.get(name):
        raise UnsupportedOperation(f"{_EXTENSION}, without `{name}`.", field)


def parse(body: Body, spec: ModelSpec) -> ParsedRequest:
    """Parses the body of `POST /v2/models/{model}/infer`.

    Raises:
        InvalidRequest: a field is missing or has a wrong type, or a shape doesn't fit its data.
        UnsupportedOperation: the binary tensor data extension is used.
    """
    _PARAMETERS(body)
    _OUTPUTS(body)
    job = EmbedJob(
        _INPUTS(body),
        _MODEL(body),
        truncation="chunk" if CHUNK(body) else "end",
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, partial(_render, request_id=_ID(body)))


class OutputTensor(TypedDict):
    """A tensor of vectors, row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: Annotated[Any, VECTOR]


class InferReply(TypedDict):
    """The reply of `POST /v2/models/{model}/infer`."""

    model_name: str
    id: NotRequired[str]
    outputs: list[OutputTensor]


def _render(result: EmbedResult, *, request_id: str | None) -> bytes:
    reply: InferReply = {
        "model_name": result.model,
        "outputs": [
            {
                "name": _OUTPUT,
                "datatype": "FP32",
                "shape": list(result.vectors.shape),
                "data": result.vectors.astype("<f4", copy=False).ravel(),
            }
        ],
    }
    if request_id is not None:
        reply["id"] = request_id
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)


class ServerReply(TypedDict):
    """The reply of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


async def _server(service: EmbedService, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: ServerReply = {"name": "embedserve", "version": __version__, "extensions": []}
    return ViewResponse(orjson.dumps(reply))


class LiveReply(TypedDict):
    """The reply of `GET /v2/health/live`."""

    live: bool


async def _live(service: EmbedService, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: LiveReply = {"live": True}
    return ViewResponse(orjson.dumps(reply))


class ReadyReply(TypedDict):
    """The reply of `GET /v2/health/ready`."""

    ready: bool


async def _ready(service: EmbedService, arguments: Mapping[str, Any]) -> ViewResponse:
    healthy = (await service.health()).healthy
    reply: ReadyReply = {"ready": healthy}
    return ViewResponse(orjson.dumps(reply), 200 if healthy else 503)


class ModelReadyReply(TypedDict):
    """The reply of `GET /v2/models/{model}/ready`."""

    name: str
    ready: bool


async def _model_ready(service: EmbedService, arguments: Mapping[str, Any]) -> ViewResponse:
    name = _served_name(service.spec, arguments)
    healthy = (await service.health()).healthy
    reply: ModelReadyReply = {"name": name, "ready": healthy}
    return ViewResponse(orjson.dumps(reply), 200 if healthy else 503)


class TensorInfo(TypedDict):
    """A tensor of the model; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelReply(TypedDict):
    """The reply of `GET /v2/models/{model}`."""

    name: str
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


async def _model(service: EmbedService, arguments: Mapping[str, Any]) -> ViewResponse:
    reply: ModelReply = {
        "name": _served_name(service.spec, arguments),
        "platform": "embedserve",
        "inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": _OUTPUT, "datatype": "FP32", "shape": [-1, service.spec.dim]}],
    }
    return ViewResponse(orjson.dumps(reply))


def _served_name(spec: ModelSpec, arguments: Mapping[str, Any]) -> str:
    """Returns the name of the model in the path.

    Raises:
        ModelNotFound: the name is neither the model's nor an alias.
    """
    name = str(arguments["model"])
    if not spec.accepts(name):
        raise ModelNotFound(
            f"The model {name!r} isn't served here. Served: {spec.name!r}.", "model"
        )
    return name


DIALECT = Dialect(
    name="Open Inference Protocol",
    order=150,
    render_error=sidecar.render_error,
    error_schema=sidecar.ERROR_SCHEMA,
    endpoints=(
        Endpoint(
            path="/v2/models/{model:path}/infer",
            summary="Embed the texts of a tensor.",
            deciding_key="inputs",
            fields=(_INPUTS, _MODEL, _ID, _OUTPUTS, _PARAMETERS, CHUNK, USE_CACHE),
            parse=parse,
            reply_schema=schema_of(InferReply),
        ),
    ),
    views=(
        ViewRoute(
            path="/v2",
            summary="Describe the server.",
            respond=_server,
            reply_schema=schema_of(ServerReply),
            public=True,
        ),
        ViewRoute(
            path="/v2/health/live",
            summary="Liveness: whether the service answers requests.",
            respond=_live,
            reply_schema=schema_of(LiveReply),
            public=True,
        ),
        ViewRoute(
            path="/v2/health/ready",
            summary="Readiness: whether a live replica has computed a vector recently.",
            respond=_ready,
            reply_schema=schema_of(ReadyReply),
            public=True,
            statuses=UNHEALTHY_STATUSES,
        ),
        ViewRoute(
            path="/v2/models/{model:path}/ready",
            summary="Readiness of the model.",
            respond=_model_ready,
            reply_schema=schema_of(ModelReadyReply),
            public=True,
            statuses=UNHEALTHY_STATUSES,
        ),
        ViewRoute(
            path="/v2/models/{model:path}",
            summary="Describe the model and its tensors.",
            respond=_model,
            reply_schema=schema_of(ModelReply),
        ),
    ),
)
