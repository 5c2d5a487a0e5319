from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from jsonschema import Draft202012Validator

from serve_app.web.schema.json_schema import Schema
from serve_app.web.schema.typed_dict import Vector, schema_of


class Usage(TypedDict):
    tokens: int
    cost: NotRequired[float]


class Reply(TypedDict):
    object: Literal["list", "page"]
    usage: Usage
    names: list[str]
    vectors: Sequence[Vector]
    reason: str | None


class TimedReply(Reply):
    created: int


@pytest.mark.parametrize(
    ("type_", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (Any, {}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (Literal["a"] | None, {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        (Annotated[Any, {"const": 1}], {"const": 1}),
        (Vector, {"type": "array", "items": {"type": "number"}}),
    ],
    ids=str,
)
def test_schema_of_a_type(type_: Any, schema: Schema) -> None:
    assert schema_of(type_) == schema


def test_schema_of_a_typed_dict_is_inline() -> None:
    assert schema_of(Reply) == {
        "type": "object",
        "properties": {
            "object": {"type": "string", "enum": ["list", "page"]},
            "usage": {
                "type": "object",
                "properties": {"tokens": {"type": "integer"}, "cost": {"type": "number"}},
                "required": ["tokens"],
            },
            "names": {"type": "array", "items": {"type": "string"}},
            "vectors": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "number"}},
            },
            "reason": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["object", "usage", "names", "vectors", "reason"],
    }


def test_a_derived_typed_dict_starts_with_the_fields_of_its_base() -> None:
    schema = schema_of(TimedReply)
    assert list(schema["properties"]) == [*schema_of(Reply)["properties"], "created"]
    assert schema["required"][-1] == "created"


def test_a_reply_of_the_type_is_valid() -> None:
    reply: TimedReply = {
        "object": "list",
        "usage": {"tokens": 3},
        "names": ["a"],
        "vectors": [[0.5, 1]],
        "reason": None,
        "created": 1,
    }
    validator = Draft202012Validator(schema_of(TimedReply))
    validator.validate(reply)
    assert not validator.is_valid({**reply, "usage": {}})
    assert not validator.is_valid({**reply, "object": "other"})


@pytest.mark.parametrize("type_", [bytes, dict[str, int], tuple[int, str]], ids=str)
def test_a_type_without_a_schema_must_be_annotated(type_: Any) -> None:
    with pytest.raises(TypeError, match="Annotate it"):
        schema_of(type_)
