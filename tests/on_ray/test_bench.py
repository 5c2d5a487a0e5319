"""The harness against the running service."""

import orjson

from tests.on_ray.conftest import Service

RUN = """
from embedserve_client.command.main import main
asked = ["bench", "run", "{url}", "--duration", "1.5", "--warmup", "0.5"]
raise SystemExit(main([*asked, *{more}]))
"""


def record(service: Service, url: str, *more: str) -> dict[str, object]:
    printed = service.drive(RUN.format(url=url, more=list(more)))
    entry: dict[str, object] = orjson.loads(printed.splitlines()[-1])
    return entry


def test_through_the_handle_as_another_job_would_ask(service: Service) -> None:
    for more in ([], ["--rate", "20"]):
        entry = record(service, "ray:embedserve", *more)
        assert entry["failed"] == {}
        assert entry["dialect"] == "handle"
        assert isinstance(entry["answered"], int)
        assert entry["answered"] > 5


def test_what_the_service_costs_is_told_by_deployment(service: Service) -> None:
    first = service.launch.processes()[0].pid
    entry = record(service, service.url, "--pid", str(first))
    assert isinstance(entry["cpu_by_process"], dict)
    assert "Embedder" in entry["cpu_by_process"]
    assert entry["replicas"] == service.running("Embedder")
