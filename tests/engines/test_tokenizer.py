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


#: "hello world", as OpenAI's models read it: inside of most vocabularies.
CL100K = (15339, 1917)


def tokenizer(
    *, left: bool = False, inputs: tuple[str, ...] = INPUTS, frame: str | None = None
) -> TextTokenizer:
    own = Tokenizer(WordLevel({"[PAD]": 9, "a": 1, "b": 2, "<s>": 3, "</s>": 4}, unk_token="b"))
    own.pre_tokenizer = Whitespace()
    if frame is not None:
        own.post_processor = TemplateProcessing(
            single=frame, special_tokens=[("<s>", 3), ("</s>", 4)]
        )
    own.enable_truncation(20)
    return TextTokenizer(own, Padding(pad_id=9, left=left, inputs=inputs))


@pytest.fixture(scope="module")
def bert() -> TextTokenizer:
    """That of the default model."""
    own = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    own.no_padding()
    own.enable_truncation(256)
    return TextTokenizer(own, Padding(pad_id=0, left=False, inputs=INPUTS))


def of_length(n: int) -> TokenIds:
    return TokenIds([1] * n, truncated=False)


@pytest.mark.parametrize("left", [False, True])
def test_short_rows_are_filled_on_the_models_side(left: bool) -> None:
    arrays = tokenizer(left=left).pad([of_length(1), of_length(3)])
    filled, seen = ([9, 9, 1], [0, 0, 1]) if left else ([1, 9, 9], [1, 0, 0])
    assert arrays["input_ids"].tolist() == [filled, [1, 1, 1]]
    assert arrays["attention_mask"].tolist() == [seen, [1, 1, 1]]
    assert not arrays["token_type_ids"].any()
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


@pytest.mark.parametrize("left", [False, True])
def test_what_a_model_gives_for_padding_is_left_out(left: bool) -> None:
    batch = [of_length(1), of_length(3), of_length(2)]
    given = np.arange(24, dtype=np.float32).reshape(3, 4, 2)  # one more than the longest
    rows = tokenizer(left=left).unpad(given, batch)
    places = [[3], [1, 2, 3], [2, 3]] if left else [[0], [0, 1, 2], [0, 1]]
    for row, whole, place in zip(rows, given, places, strict=True):
        assert np.array_equal(row, whole[place])
        assert not np.shares_memory(row, given)


def test_the_model_gets_what_it_takes_and_no_more() -> None:
    assert list(tokenizer(inputs=INPUTS[:2]).pad([of_length(1)])) == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(("tokens", "wide"), [(1, 16), (16, 16), (17, 20), (20, 20)])
def test_a_length_is_rounded_up_but_not_past_the_models_limit(tokens: int, wide: int) -> None:
    (row,) = tokenizer().pad([of_length(tokens)], multiple=16)["attention_mask"]
    assert (len(row), row.sum()) == (wide, tokens)


def test_what_is_over_the_limit_is_cut_and_told() -> None:
    short, long = tokenizer().tokenize(["a b", "a " * 30])
    assert short == TokenIds([1, 2], truncated=False)
    assert long == TokenIds([1] * 20, truncated=True)


def test_it_is_the_same_after_saving(tmp_path: Path) -> None:
    first = tokenizer(left=True)
    first.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.padding == first.padding
    assert again.tokenize(["a " * 30]) == first.tokenize(["a " * 30])


def test_token_ids_of_the_model_are_taken_as_they_are(bert: TextTokenizer) -> None:
    texts = mixed_texts(60)
    read = bert.tokenize(texts)
    mixed = [text if i % 2 else tuple(read[i].ids) for i, text in enumerate(texts)]
    given = bert.tokenize(mixed)
    assert [t.ids for t in given] == [t.ids for t in read]
    # The rest of what was cut is not in the ids, so nothing tells that it ever was.
    assert [t.truncated for t in given] == [bool(i % 2) and t.truncated for i, t in enumerate(read)]


@pytest.mark.parametrize("n", [254, 255, 1000])
def test_token_ids_over_the_limit_are_cut_and_keep_their_last_special_token(
    bert: TextTokenizer, n: int
) -> None:
    (text,) = bert.tokenize(["house " * n])
    (given,) = bert.tokenize([(101, *[2160] * n, 102)])
    assert given == text
    assert (len(given.ids), given.truncated) == (256, n > 254)


@pytest.mark.parametrize(
    ("ids", "words"),
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
def test_token_ids_that_are_not_the_models_are_refused_with_the_way_out(
    bert: TextTokenizer, ids: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        bert.tokenize(["fine", ids])
    assert refused.value.param == "texts"
    assert "`check_embedding_ctx_length=False`" in refused.value.message
    assert "`token_ids: cl100k_base`" in refused.value.message


@pytest.mark.parametrize(
    ("frame", "own", "others", "words"),
    [
        (None, (1, 2), [], ""),
        ("$A", (1, 2), [], ""),
        ("<s> $A", (3, 1, 2), [(1, 2), (1, 3)], "begin with 3 (<s>), as"),
        ("$A </s>", (1, 2, 4), [(1, 2), (4, 1)], "end with 4 (</s>), as"),
        ("<s> $A <s>", (3, 3), [(3,), (3, 1)], "begin with 3 (<s>) and end with 3 (<s>), as"),
        ("<s> <s> $A", (3, 3, 1), [(3, 1), (3,)], "begin with 3 (<s>), 3 (<s>), as"),
    ],
)
def test_what_frames_a_text_is_the_tokenizers_own(
    frame: str | None, own: tuple[int, ...], others: list[tuple[int, ...]], words: str
) -> None:
    framed = tokenizer(frame=frame)
    assert framed.tokenize([own]) == [TokenIds(list(own), truncated=False)]
    for ids in others:
        with pytest.raises(InvalidRequest) as refused:
            framed.tokenize([ids])
        assert words in refused.value.message
    with pytest.raises(InvalidRequest, match="vocabulary, 0 to 9"):
        framed.tokenize([(10,)])


def test_a_text_is_spelled_with_the_places_of_its_letters(bert: TextTokenizer) -> None:
    text = "Größe 自然 👩‍👧 unbelievably"
    (spelled,) = bert.spell([text], special=True)
    assert " ".join(spelled.pieces) == (
        "[CLS] gr ##o ##ße [UNK] [UNK] [UNK] un ##bel ##ie ##va ##bly [SEP]"
    )
    assert [text[start:stop] for start, stop in spelled.offsets] == (
        ["", "Gr", "ö", "ße", "自", "然", "👩‍👧", "un", "bel", "ie", "va", "bly", ""]
    )
    assert spelled.special == [True, *[False] * 11, True]
    assert spelled.ids == bert.tokenize([text])[0].ids
    (bare,) = bert.spell([text], special=False)
    assert (bare.ids, bare.pieces) == (spelled.ids[1:-1], spelled.pieces[1:-1])
    assert (bare.offsets, bare.special) == (spelled.offsets[1:-1], [False] * 11)


def test_spelling_cuts_nothing_and_tokenizing_still_does(bert: TextTokenizer) -> None:
    text = "house " * 1000
    assert [len(s.ids) for s in bert.spell([text, "house"], special=True)] == [1002, 3]
    assert len(bert.tokenize([text])[0].ids) == 256


def test_token_ids_become_text_again(bert: TextTokenizer) -> None:
    text = "the river under the old bridge"
    (spelled,) = bert.spell([text], special=True)
    assert bert.decode([spelled.ids, []], skip_special=True) == [text, ""]
    assert bert.decode([spelled.ids], skip_special=False) == [f"[CLS] {text} [SEP]"]


@pytest.mark.parametrize("unknown", [-1, 30522, 1 << 70])
def test_what_stands_for_nothing_is_told_with_its_row(bert: TextTokenizer, unknown: int) -> None:
    with pytest.raises(InvalidRequest, match=r"Row 1: .* vocabulary, 0 to 30521") as refused:
        bert.decode([[101], [101, unknown]], skip_special=True)
    assert refused.value.param == "ids"
