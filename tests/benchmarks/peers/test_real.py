"""The peers that need no more than this project's packages, with the real model."""

import numpy as np

from benchmarks.compare import cosines
from benchmarks.peers import engine_alone, fastapi_server, sentence_transformers_alone
from benchmarks.peers.in_process import Worker
from benchmarks.peers.server import Server

TEXTS = ["a query", "a longer text about " + "nothing " * 80, "", "Grüße, 你好", "x " * 600]


def test_a_server_and_both_libraries_give_the_same_vectors() -> None:
    with (
        Worker(sentence_transformers_alone.PEER) as reference,
        Worker(engine_alone.PEER) as engine,
        Server(fastapi_server.PEER) as server,
    ):
        expected = reference.vectors(TEXTS)
        assert np.linalg.norm(expected, axis=1).round(4).tolist() == [1.0] * len(TEXTS)
        assert cosines(engine.vectors(TEXTS), expected).min() > 0.9998  # at bf16, where there is
        server.wait_until_ready()
        assert cosines(server.vectors(TEXTS), expected).min() > 0.99999
