from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from serve_app.engine.base import TokenIds
from serve_app.engine.tokenizer import Padding, TextTokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def tokenizer(*, left: bool = False, inputs: tuple[str, ...] = INPUTS) -> TextTokenizer:
    own = Tokenizer(WordLevel({"[PAD]": 9, "a": 1, "b": 2}, unk_token="b"))
    own.pre_tokenizer = Whitespace()
    own.enable_truncation(20)
    return TextTokenizer(own, Padding(pad_id=9, left=left, inputs=inputs))


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
