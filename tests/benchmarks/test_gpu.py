import re

import pytest
import torch

from benchmarks.gpu import TOKENS, generate_texts, main
from benchmarks.tokens import count_tokens


def test_it_prints_a_row_per_model_and_length(capsys: pytest.CaptureFixture[str]) -> None:
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
        assert float(row[5]) >= 0.99999  # both return the same vectors


def test_generated_texts_have_the_requested_tokens() -> None:
    for tokens in TOKENS:
        assert count_tokens([[text] for text in generate_texts(tokens, 5)]) == [tokens] * 5


def test_without_a_gpu_it_fails_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 1
    assert "no GPU" in capsys.readouterr().err
