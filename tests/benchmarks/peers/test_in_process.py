import numpy as np
import pytest

from benchmarks.peers.base import Peer, PeerError
from benchmarks.peers.in_process import LibraryProcess
from tests.fakes import fake_vector

LIBRARY = "tests.benchmarks.fake_library"


def test_a_library_returns_its_time_and_its_vectors() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-m", LIBRARY])
    with LibraryProcess(peer) as library:
        library.wait_until_ready()
        assert library.time_embedding(["a"] * 5) >= 0.01
        expected = np.stack([fake_vector("ä"), fake_vector("b\n")])
        assert np.array_equal(library.embed(["ä", "b\n"]), expected)


def test_the_error_of_a_process_that_ends_is_reported() -> None:
    peer = Peer("fake", "Fake", lambda p: [p.python, "-m", LIBRARY, "fail"])
    with LibraryProcess(peer) as library, pytest.raises(PeerError, match="no such model"):
        library.wait_until_ready()
