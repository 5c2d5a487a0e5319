from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from serve_app.config import MINILM
from serve_app.engines.base import TokenIds
from serve_app.engines.tokenizer import Padding, TextTokenizer
from serve_app.errors import InvalidRequest
from serve_app.models import model_dir
from tests.engines.texts import mixed_texts

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
#: "hello world" in OpenAI's encoding; the ids are inside most vocabularies.
CL100K = (15339, 1917)


def tokenizer(
    *, left: bool = False, inputs: tuple[str, ...] = INPUTS, template: str | None = None
) -> TextTokenizer:
    tokenizer = Tokenizer(
        WordLevel({"[PAD]": 9, "a": 1, "b": 2, "<s>": 3, "</s>": 4}, unk_token="b")
    )
    tokenizer.pre_tokenizer = Whitespace()
    if template is not None:
        tokenizer.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<s>", 3), ("</s>", 4)]
        )
    tokenizer.enable_truncation(20)
    return TextTokenizer(tokenizer, Padding(pad_id=9, left=left, inputs=inputs))


@pytest.fixture(scope="module")
def bert() -> TextTokenizer:
    """The default model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return TextTokenizer(tokenizer, Padding(pad_id=0, left=False, inputs=INPUTS))


def of_length(n: int) -> TokenIds:
    return TokenIds([1] * n, truncated=False)


@pytest.mark.parametrize("left", [False, True])
def test_short_rows_are_padded_on_the_models_side(left: bool) -> None:
    arrays = tokenizer(left=left).pad([of_length(1), of_length(3)])
    padded, mask = ([9, 9, 1], [0, 0, 1]) if left else ([1, 9, 9], [1, 0, 0])
    assert arrays["input_ids"].tolist() == [padded, [1, 1, 1]]
    assert arrays["attention_mask"].tolist() == [mask, [1, 1, 1]]
    assert not arrays["token_type_ids"].any()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("left", [False, True])
def test_unpad_removes_the_output_for_padding(left: bool) -> None:
    batch = [of_length(1), of_length(3), of_length(2)]
    output = np.arange(24, dtype=np.float32).reshape(3, 4, 2)  # one more than the longest
    rows = tokenizer(left=left).unpad(output, batch)
    columns = [[3], [1, 2, 3], [2, 3]] if left else [[0], [0, 1, 2], [0, 1]]
    for row, padded, text in zip(rows, output, columns, strict=True):
        assert np.array_equal(row, padded[text])
        assert not np.shares_memory(row, output)


def test_padding_of_the_tokenizer_itself_is_off() -> None:
    padded = Tokenizer(WordLevel({"[PAD]": 0, "a": 1, "b": 2}, unk_token="b"))
    padded.pre_tokenizer = Whitespace()
    padded.enable_truncation(128)
    padded.enable_padding(length=100)
    tokenizer = TextTokenizer(padded, Padding(pad_id=0, left=False, inputs=INPUTS))
    assert [tokens.ids for tokens in tokenizer.encode(["a b", (1, 2, 1)])] == [[1, 2], [1, 2, 1]]


def test_pad_returns_only_the_models_inputs() -> None:
    assert list(tokenizer(inputs=INPUTS[:2]).pad([of_length(1)])) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(("tokens", "length"), [(1, 16), (16, 16), (17, 20), (20, 20)])
def test_a_length_is_rounded_up_but_not_past_the_models_limit(tokens: int, length: int) -> None:
    (row,) = tokenizer().pad([of_length(tokens)], pad_to_multiple_of=16)["attention_mask"]
    assert (len(row), row.sum()) == (length, tokens)


def test_texts_over_the_limit_are_truncated() -> None:
    short, long = tokenizer().encode(["a b", "a " * 30])
    assert short == TokenIds([1, 2], truncated=False)
    assert long == TokenIds([1] * 20, truncated=True)


def test_a_saved_tokenizer_loads_unchanged(tmp_path: Path) -> None:
    saved = tokenizer(left=True)
    saved.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.padding == saved.padding
    assert loaded.encode(["a " * 30]) == saved.encode(["a " * 30])


def test_token_ids_of_the_model_are_unchanged(bert: TextTokenizer) -> None:
    texts = mixed_texts(60)
    encoded = bert.encode(texts)
    mixed = [text if i % 2 else tuple(encoded[i].ids) for i, text in enumerate(texts)]
    rows = bert.encode(mixed)
    assert [row.ids for row in rows] == [row.ids for row in encoded]
    # Truncated ids don't show that a text was truncated.
    assert [row.truncated for row in rows] == [
        bool(i % 2) and row.truncated for i, row in enumerate(encoded)
    ]


@pytest.mark.parametrize("n", [254, 255, 1000])
def test_token_ids_over_the_limit_are_truncated_before_the_last_special_token(
    bert: TextTokenizer, n: int
) -> None:
    (from_text,) = bert.encode(["house " * n])
    (from_ids,) = bert.encode([(101, *[2160] * n, 102)])
    assert from_ids == from_text
    assert (len(from_ids.ids), from_ids.truncated) == (256, n > 254)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((), "is empty"),
        ((101, -5, 102), r"\[101, -5, 102\] are in the model's vocabulary, 0 to 30521\."),
        ((101, 100264, 102), "vocabulary"),
        ((101, 30522, 102), "vocabulary"),
        (CL100K, r"\[15339, 1917\] don't begin with 101 \(\[CLS\]\) and end with 102 \(\[SEP\]\)"),
        ((101, 7592), "don't begin"),
        ((7592, 102), "don't begin"),
        ((101,), "don't begin"),
        ((102, 7592, 101), "don't begin"),
        ((101, 7592, 102, 0, 0), r"\[101, 7592, 102, 0, 0\]"),
        ((7592,) * 7, r"\[7592, 7592, 7592, 7592, 7592, 7592, …\]"),
    ],
)
def test_foreign_token_ids_are_rejected_with_a_remedy(
    bert: TextTokenizer, ids: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as raised:
        bert.encode(["fine", ids])
    assert raised.value.param == "texts"
    assert "`check_embedding_ctx_length=False`" in raised.value.message
    assert "`token_ids: cl100k_base`" in raised.value.message


@pytest.mark.parametrize(
    ("template", "valid", "invalid", "message"),
    [
        (None, (1, 2), [], ""),
        ("$A", (1, 2), [], ""),
        ("<s> $A", (3, 1, 2), [(1, 2), (1, 3)], "begin with 3 (<s>), as"),
        ("$A </s>", (1, 2, 4), [(1, 2), (4, 1)], "end with 4 (</s>), as"),
        ("<s> $A <s>", (3, 3), [(3,), (3, 1)], "begin with 3 (<s>) and end with 3 (<s>), as"),
        ("<s> <s> $A", (3, 3, 1), [(3, 1), (3,)], "begin with 3 (<s>), 3 (<s>), as"),
    ],
)
def test_special_tokens_around_a_text_are_the_tokenizers(
    template: str | None, valid: tuple[int, ...], invalid: list[tuple[int, ...]], message: str
) -> None:
    framed = tokenizer(template=template)
    assert framed.encode([valid]) == [TokenIds(list(valid), truncated=False)]
    for ids in invalid:
        with pytest.raises(InvalidRequest) as raised:
            framed.encode([ids])
        assert message in raised.value.message
    with pytest.raises(InvalidRequest, match="vocabulary, 0 to 9"):
        framed.encode([(10,)])


def test_tokens_have_offsets_into_the_text(bert: TextTokenizer) -> None:
    text = "Größe 自然 👩‍👧 unbelievably"
    (tokenized,) = bert.tokenize([text], add_special_tokens=True)
    assert " ".join(tokenized.tokens) == (
        "[CLS] gr ##o ##ße [UNK] [UNK] [UNK] un ##bel ##ie ##va ##bly [SEP]"
    )
    assert [text[start:stop] for start, stop in tokenized.offsets] == (
        ["", "Gr", "ö", "ße", "自", "然", "👩‍👧", "un", "bel", "ie", "va", "bly", ""]
    )
    assert tokenized.special_tokens_mask == [True, *[False] * 11, True]
    assert tokenized.ids == bert.encode([text])[0].ids
    (bare,) = bert.tokenize([text], add_special_tokens=False)
    assert (bare.ids, bare.tokens) == (tokenized.ids[1:-1], tokenized.tokens[1:-1])
    assert (bare.offsets, bare.special_tokens_mask) == (tokenized.offsets[1:-1], [False] * 11)


def test_tokenize_does_not_truncate_and_encode_does(bert: TextTokenizer) -> None:
    text = "house " * 1000
    assert [len(s.ids) for s in bert.tokenize([text, "house"], add_special_tokens=True)] == [
        1002,
        3,
    ]
    assert len(bert.encode([text])[0].ids) == 256


def test_decode_restores_the_text(bert: TextTokenizer) -> None:
    text = "the river under the old bridge"
    (tokenized,) = bert.tokenize([text], add_special_tokens=True)
    assert bert.decode([tokenized.ids, []], skip_special_tokens=True) == [text, ""]
    assert bert.decode([tokenized.ids], skip_special_tokens=False) == [f"[CLS] {text} [SEP]"]


@pytest.mark.parametrize("unknown", [-1, 30522, 1 << 70])
def test_unknown_ids_are_rejected_with_their_row(bert: TextTokenizer, unknown: int) -> None:
    with pytest.raises(InvalidRequest, match=r"Row 1: .* vocabulary, 0 to 30521") as raised:
        bert.decode([[101], [101, unknown]], skip_special_tokens=True)
    assert raised.value.param == "ids"
