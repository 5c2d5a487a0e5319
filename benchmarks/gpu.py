"""EmbedServe's torch engine and sentence-transformers on a GPU: `python -m benchmarks.gpu`.

Measures texts per second, from strings to vectors in memory, for texts of several lengths, with
all-MiniLM-L6-v2 and with a model of the size of BERT-base. The latter has random weights, which are
as fast as trained ones. Both libraries compute at the same precision, in batches of the same size,
and their runs alternate.
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

#: Returns the vectors of texts, shape (n, dim).
Encode = Callable[[list[str]], Float32]

TOKENS = (10, 34, 128, 256)
_MAX_TOKENS = 256
#: Limits of a batch, as in `configs/gpu.yaml`.
_MAX_BATCH_TOKENS, _MAX_BATCH_TEXTS = 65536, 1024
_PRECISIONS = {"cuda": "fp16", "cpu": "fp32"}
_HEADER = (
    "| model | tokens | EmbedServe, texts/s | sentence-transformers, texts/s | ratio | cosine |"
)


def main(argv: list[str] | None = None) -> int:
    """Prints a Markdown table. Returns the exit status, 1 if there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=_PRECISIONS, default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each library")
    parser.add_argument(
        "--quick", action="store_true", help="one run of a tiny model with few texts"
    )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "PyTorch sees no GPU. To try the benchmark without one, run "
            "`python -m benchmarks.gpu --device cpu --quick`.",
            file=sys.stderr,
        )
        return 1
    device = torch.cuda.get_device_name() if args.device == "cuda" else "a CPU"
    rounds = 1 if args.quick else args.rounds
    print(
        f"On {device} at {_PRECISIONS[args.device]}, torch {torch.__version__}, medians of {rounds}"
    )
    print(f"\n{_HEADER}\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="es-") as scratch:
        for model in (MINILM, random_bert(Path(scratch), quick=args.quick)):
            for row in _rows(model, args.device, rounds, 2**10 if args.quick else 2**20):
                print(row, flush=True)
    return 0


def random_bert(folder: Path, *, quick: bool) -> ModelConfig:
    """Writes a model of the size of BERT-base, or a tiny one, with MiniLM's tokenizer."""
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir(MINILM)))
    config = BertConfig(vocab_size=len(tokenizer))
    if quick:
        config.hidden_size, config.intermediate_size, config.num_attention_heads = 32, 64, 2
    BertModel(config).save_pretrained(folder / "parts")
    tokenizer.save_pretrained(folder / "parts")
    transformer = Transformer(str(folder / "parts"), max_seq_length=_MAX_TOKENS)
    pooling = Pooling(config.hidden_size, pooling_mode="mean")
    modules = [transformer, pooling, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return ModelConfig(name="bert-base, random weights", source=f"path:{folder / 'model'}")


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
            texts = generate_texts(tokens, max(4, total_tokens // tokens))
            batch_size = min(_MAX_BATCH_TEXTS, _MAX_BATCH_TOKENS // tokens)
            encoders = (
                _engine_encoder(engine, pool, batch_size),
                _reference_encoder(reference, batch_size),
            )
            vectors = [encode(texts) for encode in encoders]  # also warms both up
            cosine = cosines(*vectors).min()
            rates = [[_measure_rate(encode, texts) for encode in encoders] for _ in range(rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
            ratio = statistics.median(a / b for a, b in rates)
            yield (
                f"| {config.name} | {tokens} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} "
                f"| {cosine:.5f} |"
            )


def generate_texts(tokens: int, n: int) -> list[str]:
    """Returns n random texts of exactly `tokens` tokens, special tokens included."""
    vocabulary = AutoTokenizer.from_pretrained(str(model_dir(MINILM))).get_vocab()
    words = sorted(word for word in vocabulary if word.isascii() and word.isalpha())
    rng = random.Random(20260101)
    return [" ".join(rng.choices(words, k=tokens - 2)) for _ in range(n)]


def _engine_encoder(engine: TorchEngine, pool: ThreadPoolExecutor, batch_size: int) -> Encode:
    def encode(texts: list[str]) -> Float32:
        batches = (texts[i : i + batch_size] for i in range(0, len(texts), batch_size))
        futures = [
            pool.submit(engine.run, "embed", engine.tokenizer.encode(batch)) for batch in batches
        ]
        return np.concatenate([future.result() for future in futures])

    return encode


def _reference_encoder(model: SentenceTransformer, batch_size: int) -> Encode:
    return lambda texts: np.asarray(
        model.encode(texts, batch_size=batch_size, show_progress_bar=False), dtype=np.float32
    )


def _measure_rate(encode: Encode, texts: list[str]) -> float:
    """Returns texts per second."""
    start = time.perf_counter()
    encode(texts)
    return len(texts) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
