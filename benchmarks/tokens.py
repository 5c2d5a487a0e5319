"""How many tokens texts are: what the work of a model is measured in."""

from collections.abc import Iterable
from functools import cache
from itertools import chain, islice

from tokenizers import Tokenizer

from serve_app.config import MINILM
from serve_app.models import model_dir

_MAX_TOKENS = 256  # of the default model; what is over is cut


def count_tokens(requests: Iterable[list[str]]) -> list[int]:
    """Tokens of each request's texts, as the default model counts them, special ones included."""
    asked = list(requests)
    texts = list(chain.from_iterable(asked))
    lengths = iter([len(encoding.ids) for encoding in _tokenizer().encode_batch_fast(texts)])
    return [sum(islice(lengths, len(request))) for request in asked]


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(model_dir(MINILM) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer
