from collections.abc import Iterator

import pytest

from tests.benchmarks.fake_server import FakeServer, running_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def other_server() -> Iterator[FakeServer]:
    with running_server() as server:
        yield server
