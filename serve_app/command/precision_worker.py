"""Measures one engine in a process of its own.

`python -m serve_app.command.precision_worker CONFIG` prints a JSON line once the model is loaded.
Then it prints one with the texts per second of a round for each line of its input.
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import psutil

from serve_app.config import AppConfig
from serve_app.engines.affinity import available_cpus
from serve_app.engines.base import Engine
from serve_app.model_prep.engine_selection import load_engine, select_engines
from serve_app.model_prep.held_out_texts import held_out_texts

#: Texts of a kind, and how long a round of a kind takes.
_TEXTS, _ROUND_S = 192, 1.0
_BATCH_SIZE = 16
#: Queries have fewer words than this, documents at least so many.
_QUERY_WORDS, _DOCUMENT_WORDS = 9, 45


def run(config: AppConfig) -> None:
    """Loads the model of a configuration and answers the lines of standard input."""
    (selection,) = select_engines(config)
    before = psutil.Process().memory_info().rss
    engine = load_engine(selection, threads=len(available_cpus()))
    words = {text: len(text.split()) for text in held_out_texts()}
    queries = [text for text, count in words.items() if count < _QUERY_WORDS]
    documents = [text for text, count in words.items() if count >= _DOCUMENT_WORDS]
    kinds = {"queries": queries[:_TEXTS], "documents": documents[:_TEXTS]}
    for values in kinds.values():  # the first runs compile shapes
        _texts_per_second(engine, values)
    memory = psutil.Process().memory_info().rss - before
    _write({"memory_bytes": memory, "space": selection.spec.space_id})
    for _ in sys.stdin:
        _write({name: _texts_per_second(engine, values) for name, values in kinds.items()})


def _texts_per_second(engine: Engine, texts: Sequence[str]) -> float:
    """Returns the speed with all streams, including the tokenizer."""
    batches = [texts[i : i + _BATCH_SIZE] for i in range(0, len(texts), _BATCH_SIZE)]
    rounds = cycle(batches)  # shared: the lock of the interpreter protects it
    started_s = time.perf_counter()

    def embed_until_end() -> int:
        done = 0
        while time.perf_counter() < started_s + _ROUND_S:
            done += len(engine.run("embed", engine.tokenizer.encode(next(rounds))))
        return done

    with ThreadPoolExecutor(engine.streams) as streams:
        running = [streams.submit(embed_until_end) for _ in range(engine.streams)]
        done = sum(stream.result() for stream in running)
    return done / (time.perf_counter() - started_s)


def _write(values: object) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    """Measures the model of the configuration on the command line."""
    run(AppConfig.model_validate_json(sys.argv[1]))


if __name__ == "__main__":
    main()
