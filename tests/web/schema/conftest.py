from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.app import create_app
from tests.fakes import DIM, TEXT_TASKS, FakeBackend

#: With quantization ranges, every output type is available; every task of texts is supported.
CALIBRATED = replace(
    TEXT_TASKS,
    quantization_ranges=np.stack([np.full(DIM, -1, np.float32), np.full(DIM, 1, np.float32)]),
)


@pytest.fixture
def lookup() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(lookup: FakeBackend) -> Iterator[TestClient]:
    app = create_app(Catalog([EmbedService(CALIBRATED, lookup, IngressSettings())]))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document
