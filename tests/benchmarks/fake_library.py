"""A library peer: `python -m tests.benchmarks.fake_library [fail]`."""

import sys
import time

import numpy as np

from benchmarks.peers.in_process import serve_requests
from serve_app.types import Float32
from tests.fakes import fake_vector


def encode(texts: list[str]) -> Float32:
    time.sleep(0.01)
    return np.stack([fake_vector(text) for text in texts])


if __name__ == "__main__":
    if "fail" in sys.argv:
        sys.exit("no such model")
    serve_requests(encode)
