"""Bodies that aren't JSON in UTF-8: what the message says."""

import codecs
import json

import pytest

from serve_app.errors import InvalidJSON, UnsupportedMediaType
from serve_app.web.body import parse_object, require_json

TEXT = json.dumps({"input": "Zürich"}, ensure_ascii=False)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON ; Charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; charset=utf8",
        "application/json; charset=us-ascii",
        "application/json; charset=",
        "application/json; profile=x",
    ],
)
def test_json_in_utf_8_is_accepted(content_type: str) -> None:
    require_json(content_type)


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("", "not given"),
        ("text/plain; charset=utf-8", "text/plain"),
        ("application/json; charset=ISO-8859-1", "'iso-8859-1'"),
        ('application/json; profile=x; charset="utf-16"', "'utf-16'"),
    ],
)
def test_other_types_and_charsets_are_refused_by_name(content_type: str, named: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=named):
        require_json(content_type)


def test_a_byte_order_mark_of_utf_8_is_ignored() -> None:
    assert parse_object(codecs.BOM_UTF8 + TEXT.encode()) == {"input": "Zürich"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (TEXT.encode("latin-1"), r"not UTF-8, byte 12 \(0xfc\)"),
        (b'{"input": "\xed\xa0\x80"}', r"not UTF-8, byte 11 \(0xed\)"),
        (b"\x1f\x8b\x08", r"not UTF-8, byte 1 \(0x8b\)"),
        (b'{"input": "a\xe2\x82', r"not UTF-8, byte 12 \(0xe2\)"),
        (codecs.BOM_UTF8 * 2 + b"{}", "byte order mark"),
        (TEXT.encode("utf-16"), "looks like UTF-16"),
        (TEXT.encode("utf-16-le"), "looks like UTF-16-LE"),
        (TEXT.encode("utf-16-be"), "looks like UTF-16-BE"),
        (TEXT.encode("utf-32"), "looks like UTF-32"),
        (TEXT.encode("utf-32-be"), "looks like UTF-32-BE"),
        (b"{}{", "isn't valid JSON"),
        (rb'{"input": "a\ud800"}', r"half a surrogate pair"),
        (rb'{"input": "\udc00"}', r"half a surrogate pair"),
        (codecs.BOM_UTF8 + rb'{"input": "\ud800"}', "half a surrogate pair"),
    ],
)
def test_the_message_names_the_encoding_or_the_byte(body: bytes, message: str) -> None:
    with pytest.raises(InvalidJSON, match=message) as raised:
        parse_object(body)
    assert ("surrogate" in str(raised.value)) == ("surrogate" in message)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (rb'{"input": ["fine", "also fine", "abc\ud800"]}', r"`input\[2\]` .* at character 3"),
        (rb'{"input": "\udc00"}', "`input` .* at character 0"),
        (
            rb'{"input": "a", "config": {"task": ["\ud800"]}}',
            r"`config.task\[0\]` .* at character 0",
        ),
    ],
)
def test_a_surrogate_is_named_by_its_place(body: bytes, place: str) -> None:
    with pytest.raises(InvalidJSON, match=place):
        parse_object(body)


def test_surrogates_without_a_pair_become_nul() -> None:
    body = rb'{"input": ["a\ud83d\ude00", "\ude00\ud83d"], "\ud800": {"n": 1}}'
    fields = parse_object(body, replace_surrogates=True)
    assert fields == {"input": ["a\U0001f600", "\0\0"], "\0": {"n": 1}}
