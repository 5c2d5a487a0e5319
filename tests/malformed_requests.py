"""Malformed and borderline requests, generated from the examples of the routes."""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import brotli
from backports import zstd

from serve_app.config import IngressSettings
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import (
    BoolField,
    DimensionsField,
    EnumField,
    EnumListField,
    Field,
    IntField,
    ModelField,
    ObjectField,
    object_example,
)
from serve_app.web.schema.input_type import InputTypeField

_LIMITS = IngressSettings()
_ENDPOINTS = [endpoint for dialect in load_dialects() for endpoint in dialect.endpoints]
_VIEWS = [
    *(
        (view.method, view.path)
        for dialect in load_dialects()
        for view in dialect.views
        if not view.has_stream  # whose replies don't end
    ),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
]
_OTHER_PATHS = (
    "/nowhere // /embed/ /v1/embeddings/ /v1//embeddings /v1/models/ /%00 /v1/models/org%2Ffake "
    "/v1/models/%ff /v1/models/../.. /docs/ /%2e%2e/ /é"
).split()
_METHODS = "GET PUT DELETE PATCH OPTIONS HEAD TRACE QUERY PROPFIND post".split()
_DEPTHS = (10, 200, 900, 990, 1000, 1023, 1024, 1025, 5000, 100_000)
_NUMBERS = "0 -0 -1 1e999 -1e999 1e-999 NaN Infinity -Infinity 0x10 01 1.0 8.0 1.5 1e2".split()
_NUMBERS += ["9" * 400, "9" * 5000, "1_000", "+1", ".5", "5."]
_NUMBERS += [str(2**n + d) for n in (31, 32, 53, 63, 64, 128) for d in (-1, 0, 1)]
_STRINGS = "null query fake org/fake base64 int8 NONE ../etc %s {{7*7}}".split()
_STRINGS += ["", " ", "\t\n", "\x00", "a\x00b", "\ufeff", "\u2028", "é", "e\u0301", "😀"]
_STRINGS += ["\U0010ffff", "x" * 1000, "a\u202eb", "\x7f", "\x1b[31m", "'\"\\", "\ud7ff", "\ufffe"]
_STRINGS += ["\x85", "\x1c"]
_MEDIA_TYPES = (
    "text/plain ; application/x-www-form-urlencoded multipart/form-data */* \xe9 "
    "application/json application/vnd.api+json application/jsonx"
).split()
_MEDIA_TYPES += ["", "application/json, text/plain", "Application/JSON; charset=utf-8"]
_MEDIA_TYPES += ["application/json;charset=utf-16", 'application/json; charset="UTF-8"; q']
_MEDIA_TYPES += ["application/json; charset=\xff", "application/json;charset", ";charset=utf-8"]
_HEADERS = {
    "x-priority": [
        "interactive",
        "bulk",
        "high",
        "",
        "INTERACTIVE",
        "interactive,bulk",
        "\xff\xfe",
    ],
    "accept": [
        *("application/octet-stream", "*/*", "", "text/html"),
        *("application/octet-stream;q=0", "\xff"),
        *("application/json, application/octet-stream;q=0.1", "APPLICATION/OCTET-STREAM;q=1.5"),
        *(",;q,;=;", "application/octet-stream;q=", "*/*;q=0" * 500),
    ],
    "traceparent": [f"00-{n * 32}-{'b' * 16}-01" for n in "a0"] + ["x", "\xff", "0" * 999],
    "authorization": [
        *("Bearer x", "Bearer", "", "Basic eA=="),
        *("Bearer \xff\xfe", "Bearer " + "x" * 5000),
    ],
    "x-api-key": ["", "x", "\xff", "x" * 5000],
    "x-request-id": ["mine", "", "a b", "\xff", "x" * 200, "a" * 128],
    "cache-control": ["no-store", "no-store, no-cache", ",,,", "\xff"],
    "content-length": ["0", "-1", "x", "99999999999", "9" * 5000, "\xb2", "1e3", ""],
    "content-encoding": [
        *("gzip", "br", "deflate", "zstd", "identity", "x", "", ",", "*", "gzip;q=1"),
        *("gzip, " * 500, "identity, " * 500),
    ],
    "transfer-encoding": ["chunked", "gzip, chunked", "x"],
    "host": [
        *("", "[", "a b", "x" * 300, "\xff"),
        *("evil.example:99999", "[::1", "<script>", "a/b?c#d"),
    ],
    "origin": ["null", "https://evil.example", "\xff"],
    "expect": ["100-continue", "x"],
    "accept-encoding": ["gzip", "*;q=0", "zstd, gzip", "*", "gzip;q=x", "\xff", "," * 500],
    "x-forwarded-for": ["1.2.3.4", "x"],
    "range": ["bytes=0-1"],
    "upgrade": ["websocket", "h2c"],
}

_Random = random.Random
_CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": partial(gzip.compress, mtime=0),
    "deflate": zlib.compress,
    "br": partial(brotli.compress, quality=4),
    "zstd": zstd.compress,
}


class Request(NamedTuple):
    """An HTTP request."""

    method: str
    path: str  #: percent-encoded
    query: str
    headers: list[tuple[str, bytes]]
    body: bytes
    chunks: int = 1  #: number of parts that the body arrives in
    disconnects: bool = False  #: whether the client disconnects before the end of the body


def malformed_request(seed: int, number: int) -> Request:
    """Returns request number `number`, a function of the arguments alone."""
    rng = _Random(f"{seed}/{number}")
    method, path, fields = _target(rng)
    body = _body(rng, fields)
    headers = [*_headers(rng)]
    if rng.random() < 0.03:
        coding, body = _packed(rng, body)
        headers.append(("content-encoding", coding.encode()))
    if rng.random() < 0.05:
        method = rng.choice(_METHODS)
    return Request(
        method,
        path,
        rng.choice(["a=b", "%", "a=%ff&&&", "x" * 500]) if rng.random() < 0.03 else "",
        headers,
        body,
        rng.randint(1, 4) if rng.random() < 0.1 else 1,
        rng.random() < 0.01,
    )


def _target(rng: _Random) -> tuple[str, str, tuple[Field, ...]]:
    chance = rng.random()
    endpoint = rng.choice(_ENDPOINTS)
    if chance < 0.9:
        return "POST", _with_parameters(endpoint.path, rng), endpoint.fields
    if chance < 0.95:
        method, path = rng.choice(_VIEWS)
        return method, _with_parameters(path, rng), ()
    return rng.choice(["GET", "POST"]), rng.choice(_OTHER_PATHS), endpoint.fields


def _with_parameters(path: str, rng: _Random) -> str:
    return re.sub(r"\{.*?\}", lambda _: rng.choice(["fake", "org/fake", "%00", "x" * 300]), path)


def _headers(rng: _Random) -> Iterator[tuple[str, bytes]]:
    media_type = "application/json" if rng.random() < 0.93 else rng.choice(_MEDIA_TYPES)
    if rng.random() < 0.98:
        yield "content-type", media_type.encode("latin-1")
    if rng.random() < 0.2:
        for _ in range(rng.randint(1, 3)):
            name = rng.choice([*_HEADERS])
            value = (
                rng.choice(_HEADERS[name])
                if rng.random() < 0.8
                else _random_bytes(rng, 40).decode("latin-1")
            )
            yield name, value.translate({0: " ", 10: " ", 13: " "}).encode("latin-1")


def _packed(rng: _Random, body: bytes) -> tuple[str, bytes]:
    """Returns a content coding, and the packed body or a broken one."""
    coding = rng.choice([*_CODECS])
    pack = _CODECS[coding]
    if rng.random() < 0.1:
        return coding, pack(bytes(rng.choice([1, 4]) * _LIMITS.max_body_bytes))
    packed = pack(body)
    match rng.randrange(8):
        case 0:
            packed = packed[: rng.randrange(len(packed))]
        case 1:
            packed += _random_bytes(rng, 40)
        case 2:
            packed = rng.randbytes(4).join((packed[:9], packed[13:]))
        case 3:
            packed *= rng.randint(2, 100)
        case 4:
            return f"{coding}, {coding}", pack(packed)
    return coding, packed


def _random_bytes(rng: _Random, max_size: int) -> bytes:
    return rng.randbytes(rng.randint(0, max_size))


def _body(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    (build,) = rng.choices([*_BODIES], [*_BODIES.values()])
    return build(rng, fields)


def _varied_body(rng: _Random, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Returns the example with up to three more fields, most of them invalid."""
    body = object_example(fields)
    for field in rng.sample(fields, rng.randint(0, min(3, len(fields)))):
        body[field.name] = _field_value(rng, field)
    return body


def _field_value(rng: _Random, field: Field) -> Any:
    """Returns a value for a field that is sometimes valid."""
    if isinstance(field, ObjectField) and rng.random() < 0.7:
        inner = _varied_body(rng, field.fields)
        return [inner] * rng.randint(0, 3) if field.many else inner
    return _plausible_value(rng, field) if rng.random() < 0.4 else _arbitrary_value(rng)


def _plausible_value(rng: _Random, field: Field) -> Any:
    match field:
        case BoolField():
            return rng.random() < 0.5
        case IntField() | DimensionsField():
            return rng.randint(-1, 8)
        case EnumField():
            return rng.choice(field.choices)
        case EnumListField():
            return rng.sample(field.choices, 2)
        case InputTypeField():
            return rng.choice(field.choices or ("query", "document", "clustering"))
        case ModelField():
            return rng.choice(["fake", "org/fake"])
        case _:
            return field.example()


def _arbitrary_value(rng: _Random, depth: int = 0) -> Any:
    kind = rng.randrange(10 if depth < 3 else 6)
    match kind:
        case 0 | 1:
            return rng.choice(_STRINGS)
        case 2:
            return rng.choice([None, True, False])
        case 3:
            return rng.choice([0, 1, -1, 2**31, 2**63 - 1, 0.5, 8.0, 1e300, -(2**63), 7592, 999])
        case 4:
            return "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randint(1, 30)))
        case 5:
            return [rng.randrange(-2, 40_000) for _ in range(rng.randint(0, 5))]
        case 6:
            names = rng.choices(_STRINGS, k=rng.randint(0, 3))
            return {name: _arbitrary_value(rng, depth + 1) for name in names}
        case _:
            return [_arbitrary_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _example(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(object_example(fields))


def _varied(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(_varied_body(rng, fields))


def _arbitrary(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(_arbitrary_value(rng))


def _missing_fields(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    body = _varied_body(rng, fields)
    for name in rng.sample([*body], rng.randint(0, len(body))):
        del body[name]
    return _dumps(body)


def _truncated(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    body = _dumps(_varied_body(rng, fields))
    return body[: rng.randrange(len(body))]


def _bit_flips(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    body = bytearray(_dumps(_varied_body(rng, fields)))
    for _ in range(rng.randint(1, 4)):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(body)


def _duplicate_keys(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    first, second = (_dumps(_varied_body(rng, fields)) for _ in range(2))
    return first[:-1] + (b"," if len(first) > 2 and len(second) > 2 else b"") + second[1:]


def _with_raw_value(rng: _Random, fields: tuple[Field, ...], raw: str) -> bytes:
    """Returns the example with a raw JSON value in one field."""
    if not fields:
        return raw.encode("utf-8", "surrogatepass")
    body = object_example(fields)
    name = rng.choice(fields).name
    body[name] = placeholder = "<placeholder>"
    raw = raw if rng.random() < 0.5 else f"[{raw}]"
    text = json.dumps(body).replace(json.dumps(placeholder), raw)
    return text.encode("utf-8", "surrogatepass")


def _odd_number(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _with_raw_value(rng, fields, rng.choice(_NUMBERS))


def _deep_nesting(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    n = rng.choice(_DEPTHS)
    begin, end = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"text":', "}]")])
    raw = begin * n + "1" + end * (n if rng.random() < 0.8 else rng.randint(0, n))
    return _with_raw_value(rng, fields, raw) if rng.random() < 0.8 else raw.encode()


def _lone_surrogate(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    lone = rng.choice(
        ["\\ud800", "\\udc00", "\\ud800\\ud800", "\\udc00\\ud800", "\\ud83d", "\\u12"]
    )
    return _with_raw_value(rng, fields, f'"a{lone}b"')


def _other_encoding(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    text = json.dumps({**object_example(fields), "é": "ü"}, ensure_ascii=False)
    codec = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"])
    return text.encode(codec)


def _invalid_utf8(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    invalid = rng.choice(
        [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"]
    )
    body = _dumps(_varied_body(rng, fields))
    at = rng.randrange(len(body))
    return body[:at] + invalid + body[at:]


def _not_an_object(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return rng.choice(
        [b"", b"null", b"true", b'""', b"[]", b"{}", b"[[", b"\x00", _random_bytes(rng, 300)]
    )


def _gzipped(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return gzip.compress(_dumps(_varied_body(rng, fields)), mtime=0)


def _near_a_limit(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    offset = rng.randint(-1, 1)
    texts, chars = _LIMITS.max_texts_per_request + offset, _LIMITS.max_text_chars + offset
    build: Callable[[], str] = rng.choice(
        [
            lambda: json.dumps("x" * chars),
            lambda: json.dumps(["x"] * texts),
            lambda: json.dumps([[7592]] * texts),
            lambda: json.dumps(["x", *[""] * texts]),
            lambda: "[" + "1," * chars + "1]",
            lambda: json.dumps("x" * (_LIMITS.max_body_bytes - 200 * offset)),
            lambda: "[" * (_LIMITS.max_body_bytes - 1000),
        ]
    )
    return _with_raw_value(rng, fields, build())


#: Builders of bodies, and their weights.
_BODIES: dict[Callable[[_Random, tuple[Field, ...]], bytes], float] = {
    _example: 5,
    _varied: 30,
    _arbitrary: 5,
    _missing_fields: 6,
    _truncated: 7,
    _bit_flips: 10,
    _duplicate_keys: 4,
    _odd_number: 8,
    _deep_nesting: 5,
    _lone_surrogate: 3,
    _other_encoding: 4,
    _invalid_utf8: 5,
    _not_an_object: 6,
    _gzipped: 1,
    _near_a_limit: 0.5,
}
