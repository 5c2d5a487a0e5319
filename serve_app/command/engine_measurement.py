"""How long the batches of a model take on this machine."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from serve_app.command.config_file import read_config
from serve_app.engines.base import Engine
from serve_app.errors import ConfigurationError
from serve_app.inputs import Input, TextPair
from serve_app.model_prep.engine_selection import iter_engines, load_engine
from serve_app.scheduler.batch_cost import BatchCost, BatchCostFit

#: Texts and words of the batches that are measured, as far as the model takes as many tokens.
_SHAPES = ((1, 8), (1, 32), (4, 16), (8, 32), (16, 32), (16, 64), (32, 64), (32, 128))
_MIN_RUNS, _SECONDS_PER_SHAPE = 5, 1.0
_WORD = "search"


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """The median of some runs of a batch."""

    texts: int
    tokens: int  #: of each text
    seconds: float  #: divided by the number of streams, which run at a time


@dataclass(frozen=True, slots=True)
class EngineRecord:
    """What was measured, as the file has it."""

    model: str
    engine: str
    precision: str
    threads: int
    load_s: float  #: from the files to the first vector
    cost: BatchCost
    batches: Sequence[MeasuredBatch]

    def write(self, path: Path) -> None:
        """Writes the record as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def read_cost(path: Path) -> BatchCost:
        """Returns the cost that a file holds.

        Raises:
            ConfigurationError: it isn't a record.
        """
        try:
            cost = json.loads(path.read_text(encoding="utf-8"))["cost"]
            result = BatchCost(float(cost["fixed_s"]), float(cost["token_s"]))
            if result.fixed_s < 0 or result.token_s <= 0:
                raise ValueError(f"the cost is {result}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path} is no record of `embedserve capacity measure` ({error}). Write one with "
                "`embedserve capacity measure -o FILE`."
            ) from None
        return result


def measure_engine(config: Path, deployment: str | None, threads: int) -> EngineRecord:
    """Loads the first model of a deployment and measures its batches, some seconds in all.

    Raises:
        ConfigurationError: there is no such deployment, or no engine runs the model.
    """
    _, args = read_config(config, ray=False)
    for selection in iter_engines(args):
        if selection.spec.is_remote or deployment not in (None, selection.model.deployment):
            continue
        start_s = time.perf_counter()
        engine = load_engine(selection, threads=threads)
        task = next(iter(sorted(engine.tasks)))
        engine.run(task, engine.tokenizer.encode([_text(task, 8)]))
        load_s = time.perf_counter() - start_s
        batches = _measure(engine, selection.spec.max_tokens)
        fit = BatchCostFit()
        for batch in batches:
            fit.record(batch.texts * batch.tokens, batch.seconds)
        assert fit.cost is not None, "Batches were recorded."
        return EngineRecord(
            selection.spec.name,
            selection.engine,
            selection.precision,
            threads,
            load_s,
            fit.cost,
            batches,
        )
    raise ConfigurationError(f"{config} has no deployment {deployment!r} that runs models.")


def _measure(engine: Engine, max_tokens: int) -> list[MeasuredBatch]:
    batches = []
    with ThreadPoolExecutor(engine.streams) as streams:
        for texts, words in _SHAPES:
            if words <= max_tokens:
                batches.append(_measure_shape(engine, streams, texts, words))
    return batches


def _measure_shape(
    engine: Engine, streams: ThreadPoolExecutor, texts: int, words: int
) -> MeasuredBatch:
    task: Any = next(iter(sorted(engine.tasks)))
    rows = engine.tokenizer.encode([_text(task, words)] * texts)
    seconds, until_s = list[float](), time.perf_counter() + _SECONDS_PER_SHAPE
    while len(seconds) < _MIN_RUNS or time.perf_counter() < until_s:
        start_s = time.perf_counter()
        list(streams.map(lambda _: engine.run(task, rows), range(engine.streams)))
        seconds.append((time.perf_counter() - start_s) / engine.streams)
    return MeasuredBatch(texts, max(row.length for row in rows), median(seconds))


def _text(task: str, words: int) -> Input:
    text = " ".join([_WORD] * max(words - 2, 1))
    return TextPair(_WORD, text) if task == "rerank" else text
