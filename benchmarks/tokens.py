"""Token counts of texts. Tokens measure the work that a model does."""

from collections.abc import Iterable
from functools import cache
from itertools import chain, islice

from tokenizers import Tokenizer

from serve_app.config import MINILM
from serve_app.models import model_dir

_MAX_TOKENS = 256  # the limit of the default model, which truncates longer texts


def count_tokens(requests: Iterable[list[str]]) -> list[int]:
    """Returns the number of tokens of each request, counted by the default model's tokenizer.

    Special tokens count, tokens beyond the model's limit do not.
    """
    requests = list(requests)
    texts = list(chain.from_iterable(requests))
    lengths = iter([len(encoding.ids) for encoding in _tokenizer().encode_batch_fast(texts)])
    return [sum(islice(lengths, len(request))) for request in requests]


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer
