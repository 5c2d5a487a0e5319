"""The engine that runs a prepared model with OpenVINO, on CPUs."""

import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino

from serve_app.engines.base import TokenIds
from serve_app.engines.tokenizer import TextTokenizer
from serve_app.errors import SpaceMismatch
from serve_app.models import ModelSpec
from serve_app.types import EngineInfo, Float32, Input, Parity, Tokenization

GRAPH = "model.xml"
#: What the graph gives: vectors of texts, and those of their tokens.
_TEXTS, _TOKENS = 0, 1
#: OpenVINO's names of our precisions.
_HINTS = {"fp32": "f32", "bf16": "bf16"}
#: Padded tokens up to which a batch that is alone runs on all threads.
_SMALL_TOKENS = 64
#: A text that is alone is padded to a multiple of so many tokens: OpenVINO sets its graph up anew
#: for each other shape, and for one short text that takes longer than a few tokens more.
_ALONE_MULTIPLE = 16

#: Those that are free.
_Requests = SimpleQueue[openvino.InferRequest]


class OpenVinoEngine:
    """A whole sentence-transformers pipeline as one graph; needs neither torch nor transformers."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        precision: str,
        threads: int,
        parity: Parity | None = None,
    ) -> None:
        """Loads what `prepare` made.

        Args:
            folder: graph, weights and tokenizer.
            spec: what the application promised of the model.
            precision: `fp32` or `bf16`.
            threads: CPU threads; as many runs may go on at the same time, each on one.
            parity: what the gate measured, to be told.

        Raises:
            SpaceMismatch: the graph gives vectors of another width than `spec` says.
        """
        self._tokenizer = TextTokenizer.load(folder)
        self._graph = folder / GRAPH
        self._precision, self.streams = precision, threads
        self._core = openvino.Core()
        graph = self._read(_TEXTS)
        narrow = self._compile(graph, streams=threads)
        self._narrow = _requests(narrow, threads)
        self._wide: openvino.InferRequest | None = None
        if threads > 1:
            self._wide = self._compile(graph, streams=1).create_infer_request()
        self._for_tokens: _Requests | None = None
        self._compiling = threading.Lock()
        self._inside = 0
        self._entering = threading.Lock()
        # The first run of all must be alone: two threads in which OpenVINO meets its first arrays
        # wait for each other for ever.
        self.embed(self.tokenize(["The first run."]))
        self._dim = int(narrow.output(0).partial_shape[1].get_length())
        self._info = EngineInfo(
            engine="openvino",
            device="cpu",
            precision=precision,
            threads=threads,
            space_id=spec.space_id,
            versions={"openvino": openvino.__version__},
            parity=parity,
        )
        if self._dim != spec.dim:
            raise SpaceMismatch(
                f"The prepared model gives vectors of {self._dim} dimensions, its files promise "
                f"{spec.dim}."
            )

    @property
    def info(self) -> EngineInfo:
        """What this engine is and what it runs on."""
        return self._info

    @property
    def dim(self) -> int:
        """Width of its vectors."""
        return self._dim

    def tokenize(self, texts: Sequence[Input]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit.

        Raises:
            InvalidRequest: token ids among them are not the model's own.
        """
        return self._tokenizer.tokenize(texts)

    def spell(self, texts: Sequence[str], *, special: bool) -> list[Tokenization]:
        """How texts are spelled, not cut; `special`: with special tokens around them."""
        return self._tokenizer.spell(texts, special=special)

    def decode(self, rows: Sequence[Sequence[int]], *, skip_special: bool) -> list[str]:
        """The texts that rows of token ids stand for.

        Raises:
            InvalidRequest: an id is not in the vocabulary.
        """
        return self._tokenizer.decode(rows, skip_special=skip_special)

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, from one padded run of the graph.

        Batches side by side, each on one thread, are the most work in a second; one small batch on
        all threads, while nothing else runs, is the soonest answer.
        """
        inputs = self._tokenizer.pad(batch, multiple=_ALONE_MULTIPLE if len(batch) == 1 else 1)
        small = next(iter(inputs.values())).size <= _SMALL_TOKENS
        with self._entering:
            self._inside += 1
            wide = self._wide if small and self._inside == 1 else None
        request = wide or self._narrow.get()
        try:
            outputs = request.infer(inputs, share_inputs=True)
            return np.array(outputs[0], dtype=np.float32)  # a copy: the next run writes there
        finally:
            if wide is None:
                self._narrow.put(request)
            with self._entering:
                self._inside -= 1

    def embed_tokens(self, batch: Sequence[TokenIds]) -> list[Float32]:
        """Of each text the vectors of its tokens, shape (tokens, width), float32, before pooling.

        The first call compiles the graph once more, since one that gave both would compute and
        hand out what hardly anybody asks for.
        """
        with self._compiling:
            if self._for_tokens is None:
                compiled = self._compile(self._read(_TOKENS), streams=self.streams)
                self._for_tokens = _requests(compiled, self.streams)
        inputs = self._tokenizer.pad(batch)
        request = self._for_tokens.get()
        try:
            outputs = request.infer(inputs, share_inputs=True)
            return self._tokenizer.unpad(outputs[0], batch)
        finally:
            self._for_tokens.put(request)

    def _read(self, output: int) -> Any:
        """The graph with one output, less all that only the other one needs."""
        graph = self._core.read_model(self._graph)
        for i, result in enumerate(graph.get_results()):
            if i != output:
                graph.remove_result(result)
        return graph

    def _compile(self, graph: Any, *, streams: int) -> openvino.CompiledModel:
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.streams,
            "ENABLE_CPU_PINNING": False,  # the replica pins its threads, by its rank
        }
        return self._core.compile_model(graph, "CPU", options)


def _requests(compiled: openvino.CompiledModel, count: int) -> _Requests:
    requests = _Requests()
    for _ in range(count):
        requests.put(compiled.create_infer_request())
    return requests
