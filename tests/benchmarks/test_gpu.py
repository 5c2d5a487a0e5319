import re

import pytest
import torch

from benchmarks.gpu import TOKENS, main, texts_of
from benchmarks.tokens import count_tokens


def test_it_prints_a_row_for_each_model_and_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--quick"]) == 0
    rows = [
        re.split(r" ?\| ?", line)[1:-1]
        for line in capsys.readouterr().out.splitlines()
        if re.match(r"\|.*\d", line)
    ]
    assert [int(row[1]) for row in rows] == [*TOKENS, *TOKENS]
    assert len({row[0] for row in rows}) == 2
    for row in rows:
        assert all(float(figure) > 0 for figure in row[2:5])
        assert float(row[5]) >= 0.99999  # both compute the same


def test_texts_are_as_long_as_they_are_meant_to_be() -> None:
    for tokens in TOKENS:
        assert count_tokens([[text] for text in texts_of(tokens, 5)]) == [tokens] * 5


def test_it_says_when_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 1
    assert "no GPU" in capsys.readouterr().err
