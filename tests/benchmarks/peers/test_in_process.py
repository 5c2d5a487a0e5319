import numpy as np
import pytest

from benchmarks.peers.base import Peer, PeerFailed
from benchmarks.peers.in_process import Worker
from tests.fakes import fake_vector

LIBRARY = "tests.benchmarks.library"


def test_it_times_the_library_alone() -> None:
    with Worker(Peer("fake", "Fake", lambda at: [at.python, "-m", LIBRARY])) as worker:
        worker.wait_until_ready()
        assert worker.encode(["a"] * 5) >= 0.01
        expected = np.stack([fake_vector("ä"), fake_vector("b\n")])
        assert np.array_equal(worker.vectors(["ä", "b\n"]), expected)


def test_one_that_ends_says_why() -> None:
    peer = Peer("fake", "Fake", lambda at: [at.python, "-m", LIBRARY, "dies"])
    with Worker(peer) as worker, pytest.raises(PeerFailed, match="no such model"):
        worker.wait_until_ready()
