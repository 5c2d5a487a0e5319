"""Requests that are wrong, or half right: made of the routes' examples."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from serve_app.config import IngressSettings
from serve_app.web.dialects import endpoints, views
from serve_app.web.schema.fields import (
    BoolField,
    DimensionsField,
    EnumField,
    EnumListField,
    Field,
    InputTypeField,
    IntField,
    ModelField,
    ObjectField,
    sample,
)

_LIMITS = IngressSettings()
_ENDPOINTS = [one for found in endpoints().values() for one in found]
_VIEWS = [
    *((view.method, view.path) for view in views()),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
]
_PLACES = ["/nowhere", "//", "/embed/", "/v1/embeddings/", "/v1//embeddings", "/v1/models/", "/%00"]
_PLACES += [
    "/v1/models/org%2Ffake",
    "/v1/models/%ff",
    "/v1/models/../..",
    "/docs/",
    "/%2e%2e/",
    "/é",
]
_METHODS = [
    "GET",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "HEAD",
    "TRACE",
    "QUERY",
    "PROPFIND",
    "post",
]
_DEEP = (10, 200, 900, 990, 1000, 1023, 1024, 1025, 5000, 100_000)
_NUMBERS = [
    "0",
    "-0",
    "-1",
    "1e999",
    "-1e999",
    "1e-999",
    "NaN",
    "Infinity",
    "-Infinity",
    "0x10",
    "01",
]
_NUMBERS += [str(2**n + d) for n in (31, 32, 53, 63, 64, 128) for d in (-1, 0, 1)]
_NUMBERS += ["1.0", "8.0", "1.5", "1e2", "9" * 400, "9" * 5000, "1_000", "+1", ".5", "5."]
_STRINGS = [
    "",
    " ",
    "\t\n",
    "\x00",
    "a\x00b",
    "\ufeff",
    "\u2028",
    "é",
    "e\u0301",
    "😀",
    "\U0010ffff",
]
_STRINGS += [
    "null",
    "x" * 1000,
    "query",
    "fake",
    "org/fake",
    "base64",
    "int8",
    "NONE",
    "../etc",
    "%s",
]
_STRINGS += ["a\u202eb", "\x7f", "\x1b[31m", "{{7*7}}", "'\"\\", "\ud7ff", "\ufffe", "\x85", "\x1c"]
_TYPES = ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=utf-16"]
_TYPES += ["text/plain", "", ";", "application/x-www-form-urlencoded", "multipart/form-data", "*/*"]
_TYPES += ["application/json, text/plain", "application/vnd.api+json", "application/jsonx", "\xe9"]
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
        "application/octet-stream",
        "*/*",
        "text/html",
        "",
        "application/octet-stream;q=0",
        "\xff",
    ],
    "traceparent": [
        f"00-{'a' * 32}-{'b' * 16}-01",
        f"00-{'0' * 32}-{'b' * 16}-01",
        "x",
        "\xff",
        "0" * 999,
    ],
    "authorization": [
        "Bearer x",
        "Bearer",
        "",
        "Basic eA==",
        "Bearer \xff\xfe",
        "Bearer " + "x" * 5000,
    ],
    "x-api-key": ["", "x", "\xff", "x" * 5000],
    "x-request-id": ["mine", "", "a b", "\xff", "x" * 200, "a" * 128],
    "cache-control": ["no-store", "no-store, no-cache", ",,,", "\xff"],
    "content-length": ["0", "-1", "x", "99999999999", "9" * 5000, "\xb2", "1e3", ""],
    "content-encoding": ["gzip", "br", "identity", "x"],
    "transfer-encoding": ["chunked", "gzip, chunked", "x"],
    "host": [
        "",
        "[",
        "a b",
        "x" * 300,
        "\xff",
        "evil.example:99999",
        "[::1",
        "<script>",
        "a/b?c#d",
    ],
    "origin": ["null", "https://evil.example", "\xff"],
    "expect": ["100-continue", "x"],
    "accept-encoding": ["gzip", "*;q=0"],
    "x-forwarded-for": ["1.2.3.4", "x"],
    "range": ["bytes=0-1"],
    "upgrade": ["websocket", "h2c"],
}

_Random = random.Random


class Request(NamedTuple):
    """What is sent."""

    method: str
    path: str  #: percent-encoded
    query: str
    headers: list[tuple[str, bytes]]
    body: bytes
    chunks: int = 1  #: in how many parts the body arrives
    leaves: bool = False  #: whether the client goes away before the end of it


def request(seed: int, number: int) -> Request:
    """One request; seed and number make it the same every time."""
    rng = _Random(f"{seed}/{number}")
    method, path, fields = _target(rng)
    body = _body(rng, fields)
    if rng.random() < 0.05:
        method = rng.choice(_METHODS)
    return Request(
        method,
        path,
        rng.choice(["a=b", "%", "a=%ff&&&", "x" * 500]) if rng.random() < 0.03 else "",
        [*_headers(rng)],
        body,
        rng.randint(1, 4) if rng.random() < 0.1 else 1,
        rng.random() < 0.01,
    )


def _target(rng: _Random) -> tuple[str, str, tuple[Field, ...]]:
    chance = rng.random()
    endpoint = rng.choice(_ENDPOINTS)
    if chance < 0.9:
        return "POST", endpoint.path, endpoint.fields
    if chance < 0.95:
        method, path = rng.choice(_VIEWS)
        return method, path.replace("{name:path}", rng.choice(["fake", "%00", "x" * 300])), ()
    return rng.choice(["GET", "POST"]), rng.choice(_PLACES), endpoint.fields


def _headers(rng: _Random) -> Iterator[tuple[str, bytes]]:
    media_type = "application/json" if rng.random() < 0.93 else rng.choice(_TYPES)
    if rng.random() < 0.98:
        yield "content-type", media_type.encode("latin-1")
    if rng.random() < 0.2:
        for _ in range(rng.randint(1, 3)):
            name = rng.choice([*_HEADERS])
            value = (
                rng.choice(_HEADERS[name])
                if rng.random() < 0.8
                else _noise(rng, 40).decode("latin-1")
            )
            yield name, value.translate({0: " ", 10: " ", 13: " "}).encode("latin-1")


def _noise(rng: _Random, most: int) -> bytes:
    return rng.randbytes(rng.randint(0, most))


def _body(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    (make,) = rng.choices([*_KINDS], [*_KINDS.values()])
    return make(rng, fields)


def _valid(rng: _Random, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The example, and some more of the fields with values that are mostly wrong."""
    body = sample(fields)
    for one in rng.sample(fields, rng.randint(0, min(3, len(fields)))):
        body[one.name] = _about(rng, one)
    return body


def _about(rng: _Random, one: Field) -> Any:
    """A value for a field that is sometimes right."""
    if isinstance(one, ObjectField) and rng.random() < 0.7:
        inner = _valid(rng, one.fields)
        return [inner] * rng.randint(0, 3) if one.many else inner
    return _fitting(rng, one) if rng.random() < 0.4 else _odd(rng)


def _fitting(rng: _Random, one: Field) -> Any:
    match one:
        case BoolField():
            return rng.random() < 0.5
        case IntField() | DimensionsField():
            return rng.randint(-1, 8)
        case EnumField():
            return rng.choice(one.choices)
        case EnumListField():
            return rng.sample(one.choices, 2)
        case InputTypeField():
            return rng.choice(one.allowed or ("query", "document", "clustering"))
        case ModelField():
            return rng.choice(["fake", "org/fake"])
        case _:
            return one.sample()


def _odd(rng: _Random, depth: int = 0) -> Any:
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
            return {rng.choice(_STRINGS): _odd(rng, depth + 1) for _ in range(rng.randint(0, 3))}
        case _:
            return [_odd(rng, depth + 1) for _ in range(rng.randint(0, 4))]


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _right(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(sample(fields))


def _half_right(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(_valid(rng, fields))


def _anything(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _dumps(_odd(rng))


def _missing(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    body = _valid(rng, fields)
    for name in rng.sample([*body], rng.randint(0, len(body))):
        del body[name]
    return _dumps(body)


def _truncated(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    whole = _dumps(_valid(rng, fields))
    return whole[: rng.randrange(len(whole))]


def _flipped(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    body = bytearray(_dumps(_valid(rng, fields)))
    for _ in range(rng.randint(1, 4)):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(body)


def _twice(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    first, second = (_dumps(_valid(rng, fields)) for _ in range(2))
    return first[:-1] + (b"," if len(first) > 2 and len(second) > 2 else b"") + second[1:]


def _raw(rng: _Random, fields: tuple[Field, ...], raw: str) -> bytes:
    """The example with a field whose value is written by hand."""
    if not fields:
        return raw.encode("utf-8", "surrogatepass")
    body = sample(fields)
    name = rng.choice(fields).name
    body[name] = mark = "<here>"
    text = json.dumps(body).replace(json.dumps(mark), raw if rng.random() < 0.5 else f"[{raw}]")
    return text.encode("utf-8", "surrogatepass")


def _number(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return _raw(rng, fields, rng.choice(_NUMBERS))


def _deep(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    n = rng.choice(_DEEP)
    begin, end = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"text":', "}]")])
    raw = begin * n + "1" + end * (n if rng.random() < 0.8 else rng.randint(0, n))
    return _raw(rng, fields, raw) if rng.random() < 0.8 else raw.encode()


def _surrogates(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    lone = rng.choice(
        ["\\ud800", "\\udc00", "\\ud800\\ud800", "\\udc00\\ud800", "\\ud83d", "\\u12"]
    )
    return _raw(rng, fields, f'"a{lone}b"')


def _encoded(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    text = json.dumps({**sample(fields), "é": "ü"}, ensure_ascii=False)
    codec = rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"])
    return text.encode(codec)


def _not_utf8(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    bad = rng.choice(
        [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80"]
    )
    body = _dumps(_valid(rng, fields))
    place = rng.randrange(len(body))
    return body[:place] + bad + body[place:]


def _noise_only(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return rng.choice(
        [b"", b"null", b"true", b'""', b"[]", b"{}", b"[[", b"\x00", _noise(rng, 300)]
    )


def _squeezed(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    return gzip.compress(_dumps(_valid(rng, fields)), mtime=0)


def _near_a_limit(rng: _Random, fields: tuple[Field, ...]) -> bytes:
    by = rng.randint(-1, 1)
    texts, chars = _LIMITS.max_texts_per_request + by, _LIMITS.max_text_chars + by
    make: Callable[[], str] = rng.choice(
        [
            lambda: json.dumps("x" * chars),
            lambda: json.dumps(["x"] * texts),
            lambda: json.dumps([[7592]] * texts),
            lambda: json.dumps(["x", *[""] * texts]),
            lambda: "[" + "1," * chars + "1]",
            lambda: json.dumps("x" * (_LIMITS.max_body_bytes - 200 * by)),
            lambda: "[" * (_LIMITS.max_body_bytes - 1000),
        ]
    )
    return _raw(rng, fields, make())


#: Ways to make a body, and how often each is taken.
_KINDS: dict[Callable[[_Random, tuple[Field, ...]], bytes], float] = {
    _right: 5,
    _half_right: 30,
    _anything: 5,
    _missing: 6,
    _truncated: 7,
    _flipped: 10,
    _twice: 4,
    _number: 8,
    _deep: 5,
    _surrogates: 3,
    _encoded: 4,
    _not_utf8: 5,
    _noise_only: 6,
    _squeezed: 1,
    _near_a_limit: 0.5,
}
