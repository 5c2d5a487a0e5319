from collections.abc import Iterator

import pytest

from tests.benchmarks.server import Server, running


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def other() -> Iterator[Server]:
    with running() as started:
        yield started
