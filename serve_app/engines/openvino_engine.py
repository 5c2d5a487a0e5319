"""The engine that runs a prepared model with OpenVINO, on CPUs.

The prepared model is the whole sentence-transformers pipeline as one graph, so this module needs
neither torch nor transformers.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import openvino

from serve_app.engines.base import (
    ModelInput,
    Rows,
    TokenIds,
    engine_tasks,
    sub_batches,
    unsupported_task,
)
from serve_app.engines.cpu_features import CpuFeatures
from serve_app.engines.multi_vector_tokenizer import MultiVectorTokenizer
from serve_app.engines.rows import output_rows
from serve_app.engines.tokenizer import INPUT_TYPES, TextTokenizer
from serve_app.errors import SpaceMismatch
from serve_app.models import ModelSpec
from serve_app.tasks import Task
from serve_app.types import EngineInfo, Parity

GRAPH = "model.xml"
#: The outputs of the graph. Only dense models have a second one.
_MAIN_OUTPUT, _TOKEN_EMBEDDINGS = 0, 1
#: The task of the second output.
_SECOND_OUTPUT: Task = "embed_tokens"
#: Precisions by OpenVINO's names. What a quantized graph doesn't compute at int8 it computes at
#: fp32, on every CPU.
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-fast": "f32"}
#: Padded tokens up to which a batch runs on all threads if no other batch is running.
_LATENCY_MAX_TOKENS = 64
#: A single text is padded to a multiple of this length. OpenVINO prepares its graph for each new
#: shape, which takes longer for a short text than computing a few tokens more.
_SINGLE_TEXT_MULTIPLE = 16
#: What OpenVINO keeps of the shapes that it has run, in entries for each stream. By default it
#: keeps 5,000, and the memory of a process grows for hours.
_SHAPE_CACHE_ENTRIES = 256

#: The idle inference requests of a compiled model.
_RequestPool = SimpleQueue[openvino.InferRequest]


class OpenVinoEngine:
    """Runs a prepared model, one batch per thread."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        precision: str,
        threads: int,
        parity: Parity | None = None,
    ) -> None:
        """Loads and compiles a prepared model.

        Args:
            folder: holds graph, weights and tokenizer; see `model_prep.openvino_export`.
            spec: the model as the application promises it.
            precision: `fp32`, `bf16`, `int8` or `int8-fast`.
            threads: CPU threads, each of which runs one batch at a time.
            parity: the result of the parity gate, for `info`.

        Raises:
            ConfigurationError: the CPU doesn't compute the precision natively.
            SpaceMismatch: the graph's outputs differ in width from the spec's.
        """
        CpuFeatures.detect().require(precision, "openvino")
        self.tasks = engine_tasks(spec)
        load = MultiVectorTokenizer.load if spec.kind == "multi-vector" else TextTokenizer.load
        self.tokenizer = load(folder, INPUT_TYPES[spec.kind])
        self._graph_file, self._dim = folder / GRAPH, spec.dim
        self._precision, self.streams = precision, threads
        self._core = openvino.Core()
        graph = self._read_graph(_MAIN_OUTPUT)
        compiled = self._compile(graph, streams=threads)
        self._throughput_requests = _create_requests(compiled, threads)
        self._latency_request: openvino.InferRequest | None = None
        if threads > 1:
            self._latency_request = self._compile(graph, streams=1).create_infer_request()
        self._token_requests: _RequestPool | None = None
        self._token_compile_lock = threading.Lock()
        self._running_batches = 0
        self._running_batches_lock = threading.Lock()
        # OpenVINO deadlocks if its first two runs in a process happen at the same time.
        self.run(min(self.tasks), self.tokenizer.encode(["The first run."]))
        *_, width = compiled.output(0).partial_shape
        dim = int(width.get_length())
        self._info = EngineInfo(
            engine="openvino",
            device="cpu",
            precision=precision,
            threads=threads,
            space_id=spec.space_id,
            versions={"openvino": openvino.__version__},
            parity=parity,
        )
        if dim != spec.dim:
            raise SpaceMismatch(
                f"The prepared model gives vectors of {dim} dimensions, its files promise "
                f"{spec.dim}."
            )

    @property
    def info(self) -> EngineInfo:
        """The engine, its device, precision and versions."""
        return self._info

    def run(self, task: Task, batch: Sequence[ModelInput]) -> Rows:
        """Returns the output of each input, from one padded run of the graph.

        Raises:
            UnsupportedOperation: the engine doesn't support the task.
        """
        if task not in self.tasks:
            raise unsupported_task(task, self.tasks)
        tokens = cast("Sequence[TokenIds]", batch)
        if task == _SECOND_OUTPUT and len(self.tasks) > 1:
            return self._run_second(task, tokens)
        if task == "embed_sparse":
            parts = sub_batches(tokens, self._dim)
            return [row for part in parts for row in self._run(task, part)]
        return self._run(task, tokens)

    def _run(self, task: Task, batch: Sequence[TokenIds]) -> Rows:
        """Returns rows of the graph's first output.

        Parallel batches, each on one thread, give the highest throughput. A small batch runs on all
        threads if no other is running, which gives the lowest latency.
        """
        multiple = _SINGLE_TEXT_MULTIPLE if len(batch) == 1 else 1
        inputs = self.tokenizer.pad(batch, pad_to_multiple_of=multiple)
        small = next(iter(inputs.values())).size <= _LATENCY_MAX_TOKENS
        with self._running_batches_lock:
            self._running_batches += 1
            latency_request = (
                self._latency_request if small and self._running_batches == 1 else None
            )
        request = latency_request or self._throughput_requests.get()
        try:
            outputs = request.infer(inputs, share_inputs=True)
            # A copy: the next run overwrites the output.
            return output_rows(task, outputs[0], batch, self.tokenizer)
        finally:
            if latency_request is None:
                self._throughput_requests.put(request)
            with self._running_batches_lock:
                self._running_batches -= 1

    def _run_second(self, task: Task, batch: Sequence[TokenIds]) -> Rows:
        """Returns rows of the second output of a dense model: its token vectors before pooling.

        The first call compiles a second graph. A graph with both outputs would compute and copy the
        token vectors for every request, though few ask for them.
        """
        with self._token_compile_lock:
            if self._token_requests is None:
                compiled = self._compile(self._read_graph(_TOKEN_EMBEDDINGS), streams=self.streams)
                self._token_requests = _create_requests(compiled, self.streams)
        inputs = self.tokenizer.pad(batch)
        request = self._token_requests.get()
        try:
            outputs = request.infer(inputs, share_inputs=True)
            return output_rows(task, outputs[0], batch, self.tokenizer)
        finally:
            self._token_requests.put(request)

    def _read_graph(self, output: int) -> Any:
        """Reads the graph and removes all outputs but one, with the nodes that only they need."""
        graph = self._core.read_model(self._graph_file)
        for i, result in enumerate(graph.get_results()):
            if i != output:
                graph.remove_result(result)
        return graph

    def _compile(self, graph: Any, *, streams: int) -> openvino.CompiledModel:
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[self._precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.streams,
            "ENABLE_CPU_PINNING": False,  # the replica pins its threads, see `affinity`
            "CPU_RUNTIME_CACHE_CAPACITY": _SHAPE_CACHE_ENTRIES,
        }
        return self._core.compile_model(graph, "CPU", options)


def _create_requests(compiled: openvino.CompiledModel, count: int) -> _RequestPool:
    requests = _RequestPool()
    for _ in range(count):
        requests.put(compiled.create_infer_request())
    return requests
