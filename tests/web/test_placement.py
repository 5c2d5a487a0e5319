"""`/info` says where the replica that answers runs its models."""

from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import EngineInfo, Gpu, Placement
from serve_app.web.app import create_app
from serve_app.web.dialects.sidecar import InfoReply
from serve_app.web.schema.typed_dict import schema_of
from tests.fakes import SPEC, FakeBackend, FakeEngine


class PlacedBackend(FakeBackend):
    def __init__(self, gpu: Gpu | None) -> None:
        super().__init__()
        self.gpu = gpu

    async def describe(self) -> EngineInfo:
        return replace(FakeEngine.info, placement=Placement("node-7", "0-3,8", 1), gpu=self.gpu)


@pytest.mark.parametrize("gpu", [None, Gpu("NVIDIA L4", "GPU-0-1", 24 << 30, 6 << 30)])
def test_info_has_the_node_the_cpus_and_the_gpu(gpu: Gpu | None) -> None:
    service = EmbedService(SPEC, PlacedBackend(gpu), IngressSettings())
    with TestClient(create_app(Catalog([service]))) as client:
        reply = client.get("/info").json()
    Draft202012Validator(schema_of(InfoReply)).validate(reply)
    assert reply["placement"] == {
        "node": "node-7",
        "cpus": "0-3,8",
        "numa_node": 1,
        "gpu": gpu
        and {
            "name": "NVIDIA L4",
            "uuid": "GPU-0-1",
            "memory_bytes": 24 << 30,
            "memory_limit_bytes": 6 << 30,
        },
    }
