"""The body of `POST /v2/models/{model}/infer`: its fields, and the parse and render functions.

`open_inference` binds them to paths.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NotRequired, TypedDict

import orjson

from serve_app.errors import InvalidRequest, UnsupportedOperation, short_repr
from serve_app.jobs import EmbedJob
from serve_app.models import ModelSpec
from serve_app.results import EmbedResult
from serve_app.types import Truncation
from serve_app.web.dialects.extensions import CHUNK, USE_CACHE
from serve_app.web.endpoint import ParsedRequest
from serve_app.web.schema.fields import (
    Body,
    DimensionsField,
    EnumField,
    Field,
    ModelField,
    ObjectField,
    SchemaContext,
    StringField,
)
from serve_app.web.schema.input_type import InputTypeField
from serve_app.web.schema.json_schema import (
    INTEGER,
    STRING,
    VECTOR,
    Schema,
    any_of,
    array,
    nullable,
    object_,
)

INPUT_TENSOR, OUTPUT_TENSOR = "text", "embedding"


@dataclass(frozen=True, slots=True)
class _ExtensionField(Field):
    """A parameter of one of Triton's extensions, which must be false."""

    def __call__(self, body: Body) -> None:
        if not (body.get(self.name) is None or body[self.name] is False):
            raise UnsupportedOperation(
                f"The {self.description} extension isn't supported. Send and request JSON data, "
                f"without `{self.name}`.",
                self.name,
            )

    def schema(self, context: SchemaContext) -> Schema:
        description = f"Unsupported: the {self.description} extension (Triton)."
        return nullable({"const": False}) | {"description": description}


_SHARED_MEMORY = _ExtensionField("shared_memory_region", "shared memory")
_CONTENT_TYPE = EnumField("content_type", "Only `str` is supported (MLServer).", choices=("str",))
_INPUT_PARAMETERS = ObjectField(
    "parameters",
    "Options of the tensor; others are ignored.",
    fields=(
        _ExtensionField("binary_data_size", "binary tensor data"),
        _SHARED_MEMORY,
        _CONTENT_TYPE,
    ),
)
_OUTPUT_PARAMETERS = ObjectField(
    "parameters",
    "Options of the tensor; others are ignored.",
    fields=(
        _ExtensionField("binary_data", "binary tensor data"),
        _SHARED_MEMORY,
        _ExtensionField("classification", "classification"),
    ),
)


def _validate_parameters(field: ObjectField, tensor: Body) -> None:
    parameters = field(tensor) or {}
    for parameter in field.fields:
        parameter(parameters)  # type: ignore[operator]  # a field of this module


class _TextTensorField(Field):
    """A list of tensors, one of which holds the texts."""

    __slots__ = ()

    def __call__(self, body: Body) -> tuple[str, ...]:
        """Returns the texts. The service validates each of them."""
        tensors = body.get(self.name)
        if not isinstance(tensors, list) or not all(isinstance(item, dict) for item in tensors):
            raise InvalidRequest(f"`{self.name}` must be a list of tensors.", self.name)
        for tensor in tensors:
            _validate_parameters(_INPUT_PARAMETERS, tensor)
        texts = [tensor for tensor in tensors if tensor.get("datatype") == "BYTES"]
        texts.sort(key=lambda tensor: tensor.get("name") != INPUT_TENSOR)
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
            "parameters": _INPUT_PARAMETERS.schema(context),
        }
        return array(object_(tensor, optional=("name", "parameters")), minItems=1)

    def example(self) -> Any:
        """Returns a tensor of one text."""
        return [{"name": INPUT_TENSOR, "shape": [1], "datatype": "BYTES", "data": ["Hello, world"]}]


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
            if output.get("name") != OUTPUT_TENSOR:
                raise InvalidRequest(
                    f"The model has no output {short_repr(output.get('name'))}. Its only output is "
                    f"'{OUTPUT_TENSOR}'.",
                    self.name,
                )
            _validate_parameters(_OUTPUT_PARAMETERS, output)

    def _value_schema(self, context: SchemaContext) -> Schema:
        output = {
            "name": {"const": OUTPUT_TENSOR},
            "parameters": _OUTPUT_PARAMETERS.schema(context),
        }
        return array(object_(output, optional=("parameters",)))


_TRUNCATIONS: dict[str | None, Truncation] = {"NONE": "error", "START": "start"}

_ID = StringField("id", "Identifier of the request, which the reply repeats.")
_MODEL = ModelField("model", "Name or alias of the served model.")
_INPUTS = _TextTensorField(
    "inputs", "Tensors; the texts are the `BYTES` tensor `text`, or the first one.", required=True
)
_OUTPUTS = _OutputsField("outputs", "The tensors to return; only `embedding` exists.")
_INPUT_TYPE = InputTypeField(
    "input_type", "Purpose of the texts; selects the model's prompt (NIM)."
)
_DIMENSIONS = DimensionsField(
    "dimensions", "Number of leading components to return, normalized to unit length (NIM)."
)
_TRUNCATE = EnumField(
    "truncate",
    "The end at which texts over the token limit are truncated; with NONE they are errors (NIM).",
    choices=("NONE", "START", "END"),
)
_EMBEDDING_TYPE = EnumField(
    "embedding_type", "Only `float` is supported (NIM).", choices=("float",)
)
_BINARY_OUTPUT = _ExtensionField("binary_data_output", "binary tensor data")
_PARAMETERS = ObjectField(
    "parameters",
    "Options of the request; others are ignored.",
    fields=(_INPUT_TYPE, _DIMENSIONS, _TRUNCATE, _EMBEDDING_TYPE, _CONTENT_TYPE, _BINARY_OUTPUT),
)
FIELDS = (_INPUTS, _MODEL, _ID, _OUTPUTS, _PARAMETERS, CHUNK, USE_CACHE)


def parse(body: Body, spec: ModelSpec, *, version: str | None = None) -> ParsedRequest:
    """Parses the body of `POST /v2/models/{model}/infer`.

    Args:
        body: the body, and the model of the path.
        spec: the served model.
        version: the version in the path, which the reply repeats.

    Raises:
        InvalidRequest: a field is missing or has a wrong type, or a shape doesn't fit its data.
        UnsupportedOperation: an extension is used, or a tensor holds something other than text.
    """
    parameters = _PARAMETERS(body) or {}
    for field in (_EMBEDDING_TYPE, _CONTENT_TYPE, _BINARY_OUTPUT):
        field(parameters)
    _OUTPUTS(body)
    truncation, chunk = _TRUNCATIONS.get(_TRUNCATE(parameters), "end"), CHUNK(body)
    job = EmbedJob(
        _INPUTS(body),
        input_type=_INPUT_TYPE(parameters, spec),
        dimensions=_DIMENSIONS(parameters),
        truncation="chunk" if chunk else truncation,
        use_cache=USE_CACHE(body) is not False,
    )
    return ParsedRequest(job, partial(_render, request_id=_ID(body), version=version))


class OutputTensor(TypedDict):
    """A tensor of vectors, row by row."""

    name: str
    datatype: str
    shape: list[int]
    data: Annotated[Any, VECTOR]


class InferReply(TypedDict):
    """The reply of `POST /v2/models/{model}/infer`."""

    model_name: str
    model_version: NotRequired[str]
    id: NotRequired[str]
    outputs: list[OutputTensor]


def _render(result: EmbedResult, *, request_id: str | None, version: str | None) -> bytes:
    reply: InferReply = {
        "model_name": result.model,
        "outputs": [
            {
                "name": OUTPUT_TENSOR,
                "datatype": "FP32",
                "shape": list(result.vectors.shape),
                "data": result.vectors.astype("<f4", copy=False).ravel(),
            }
        ],
    }
    if request_id is not None:
        reply["id"] = request_id
    if version is not None:
        reply["model_version"] = version
    return orjson.dumps(reply, option=orjson.OPT_SERIALIZE_NUMPY)
