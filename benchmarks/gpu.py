"""Our engine against sentence-transformers on a GPU: `python -m benchmarks.gpu`.

Texts a second, from strings to vectors in memory, at several lengths: all-MiniLM-L6-v2, and a model
of the size of BERT-base with random weights, whose speed is that of trained ones. Both compute at
the same precision, in batches of the same size, and take turns.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from serve_app.config import MINILM, ModelConfig
from serve_app.engines.torch_engine import TorchEngine
from serve_app.models import model_dir, resolve
from serve_app.types import Float32

from .compare import cosines

#: Vectors of texts, shape (n, dim).
Encode = Callable[[list[str]], Float32]

TOKENS = (10, 34, 128, 256)
_MAX_TOKENS = 256
#: One batch, as in `configs/gpu.yaml`.
_BUDGET_TOKENS, _MAX_BATCH_TEXTS = 65536, 1024
_PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}
_HEAD = "| model | tokens | EmbedServe, texts/s | sentence-transformers, texts/s | times | cosine |"


def main(argv: list[str] | None = None) -> int:
    """Prints a Markdown table; 1 when there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=_PRECISIONS, default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, alternated")
    parser.add_argument("--quick", action="store_true", help="a look: tiny model, few texts")
    asked = parser.parse_args(argv)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no GPU that PyTorch sees, so there is nothing to measure. Whether this "
            "runs at all: `python -m benchmarks.gpu --device cpu --quick`.",
            file=sys.stderr,
        )
        return 1
    on = torch.cuda.get_device_name() if asked.device == "cuda" else "a CPU"
    rounds = 1 if asked.quick else asked.rounds
    print(f"On {on} at {_PRECISIONS[asked.device]}, torch {torch.__version__}, medians of {rounds}")
    print(f"\n{_HEAD}\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="es-") as scratch:
        for model in (MINILM, random_bert(Path(scratch), quick=asked.quick)):
            for row in _rows(model, asked.device, rounds, 2**10 if asked.quick else 2**20):
                print(row, flush=True)
    return 0


def random_bert(place: Path, *, quick: bool) -> ModelConfig:
    """A model in a folder, as large as BERT-base unless `quick`, with MiniLM's tokenizer."""
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir(MINILM)))
    config = BertConfig(vocab_size=len(tokenizer))
    if quick:
        config.hidden_size, config.intermediate_size, config.num_attention_heads = 32, 64, 2
    BertModel(config).save_pretrained(place / "parts")
    tokenizer.save_pretrained(place / "parts")
    transformer = Transformer(str(place / "parts"), max_seq_length=_MAX_TOKENS)
    pooling = Pooling(config.hidden_size, pooling_mode="mean")
    modules = [transformer, pooling, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(place / "model"))
    return ModelConfig(name="bert-base, random weights", source=f"path:{place / 'model'}")


def _rows(config: ModelConfig, device: str, rounds: int, total_tokens: int) -> Iterator[str]:
    engine = TorchEngine(
        config,
        resolve(config, _PRECISIONS[device]),
        device=device,
        precision=_PRECISIONS[device],
        threads=torch.get_num_threads(),
    )
    reference = SentenceTransformer(str(model_dir(config)), device=device, local_files_only=True)
    if _PRECISIONS[device] == "fp16":
        reference.half()
    with ThreadPoolExecutor(engine.streams) as pool:
        for tokens in TOKENS:
            texts = texts_of(tokens, max(4, total_tokens // tokens))
            batch = min(_MAX_BATCH_TEXTS, _BUDGET_TOKENS // tokens)
            first, second = _ours(engine, pool, batch), _theirs(reference, batch)
            cosine = cosines(first(texts), second(texts)).min()  # also warms both up
            runs = [(_speed(first, texts), _speed(second, texts)) for _ in range(rounds)]
            ours, theirs = (statistics.median(speeds) for speeds in zip(*runs, strict=True))
            times = statistics.median(a / b for a, b in runs)
            figures = f"{tokens} | {ours:.0f} | {theirs:.0f} | {times:.2f} | {cosine:.5f}"
            yield f"| {config.name} | {figures} |"


def texts_of(tokens: int, n: int) -> list[str]:
    """As many texts of words that are one token each: `tokens` with the special ones."""
    vocabulary = AutoTokenizer.from_pretrained(str(model_dir(MINILM))).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    rng = random.Random(20260101)
    return [" ".join(rng.choices(words, k=tokens - 2)) for _ in range(n)]


def _ours(engine: TorchEngine, pool: ThreadPoolExecutor, batch: int) -> Encode:
    def encode(texts: list[str]) -> Float32:
        parts = (texts[i : i + batch] for i in range(0, len(texts), batch))
        waiting = [pool.submit(engine.embed, engine.tokenizer.encode(part)) for part in parts]
        return np.concatenate([vectors.result() for vectors in waiting])

    return encode


def _theirs(model: SentenceTransformer, batch: int) -> Encode:
    return lambda texts: np.asarray(
        model.encode(texts, batch_size=batch, show_progress_bar=False), dtype=np.float32
    )


def _speed(encode: Encode, texts: list[str]) -> float:
    begin = time.perf_counter()
    encode(texts)
    return len(texts) / (time.perf_counter() - begin)


if __name__ == "__main__":
    sys.exit(main())
