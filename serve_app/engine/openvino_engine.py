"""The engine that runs a prepared model with OpenVINO, on CPUs."""

from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino

from serve_app.engine.base import TokenIds
from serve_app.engine.tokenizer import TextTokenizer
from serve_app.errors import SpaceMismatch
from serve_app.models import ModelSpec
from serve_app.types import EngineInfo, Float32, Parity

GRAPH = "model.xml"
#: OpenVINO's names of our precisions.
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine:
    """A whole sentence-transformers pipeline as one graph; needs neither torch nor transformers."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        *,
        precision: str,
        threads: int,
        streams: int = 1,
        parity: Parity | None = None,
    ) -> None:
        """Loads what `prepare` made.

        Args:
            folder: graph, weights and tokenizer.
            spec: what the application promised of the model.
            precision: `fp32` or `bf16`.
            threads: CPU threads for all runs of the model together.
            streams: runs that may go on at the same time.
            parity: what the gate measured, to be told.

        Raises:
            SpaceMismatch: the graph gives vectors of another width than `spec` says.
        """
        self._tokenizer = TextTokenizer.load(folder)
        compiled = openvino.Core().compile_model(
            folder / GRAPH,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,  # the replica pins its threads, by its rank
            },
        )
        self._streams = streams
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())
        self._dim = int(compiled.output(0).partial_shape[1].get_length())
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

    @property
    def streams(self) -> int:
        """How many threads may be inside `embed` at the same time."""
        return self._streams

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """The texts as token ids, special tokens included, cut at the model's limit."""
        return self._tokenizer.tokenize(texts)

    def embed(self, batch: Sequence[TokenIds]) -> Float32:
        """Vectors of shape (len(batch), dim), float32, from one padded run of the graph."""
        inputs = self._tokenizer.pad(batch)
        request = self._idle.get()
        try:
            outputs = request.infer(inputs, share_inputs=True)
            return np.array(outputs[0], dtype=np.float32)  # a copy: the next run writes there
        finally:
            self._idle.put(request)
