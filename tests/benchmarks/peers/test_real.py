"""The peers that need only this project's packages, with the real model."""

import numpy as np

from benchmarks.compare import cosines
from benchmarks.peers import engine_in_process, fastapi_server, sentence_transformers_in_process
from benchmarks.peers.in_process import LibraryProcess
from benchmarks.peers.server import ServerProcess

TEXTS = ["a query", "a longer text about " + "nothing " * 80, "", "Grüße, 你好", "x " * 600]


def test_a_server_and_both_libraries_return_the_same_vectors() -> None:
    with (
        LibraryProcess(sentence_transformers_in_process.PEER) as reference,
        LibraryProcess(engine_in_process.PEER) as engine,
        ServerProcess(fastapi_server.PEER) as server,
    ):
        expected = reference.embed(TEXTS)
        assert np.linalg.norm(expected, axis=1).round(4).tolist() == [1.0] * len(TEXTS)
        # The engine computes at bf16 if the CPU supports it.
        assert cosines(engine.embed(TEXTS), expected).min() > 0.9998
        server.wait_until_ready()
        assert cosines(server.embed(TEXTS), expected).min() > 0.99999
