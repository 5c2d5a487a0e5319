"""`embedserve bench` against the running service."""

import orjson

from tests.on_ray.conftest import Service

RUN = """
from embedserve_client.command.main import main
args = ["bench", "run", "{url}", "--duration", "1.5", "--warmup", "0.5"]
raise SystemExit(main([*args, *{extra_args}]))
"""


def run_bench(service: Service, url: str, *extra_args: str) -> dict[str, object]:
    output = service.run_driver(RUN.format(url=url, extra_args=list(extra_args)))
    record: dict[str, object] = orjson.loads(output.splitlines()[-1])
    return record


def test_through_the_handle_of_another_ray_job(service: Service) -> None:
    for extra_args in ([], ["--rate", "20"]):
        record = run_bench(service, "ray:embedserve", *extra_args)
        assert record["failed"] == {}
        assert record["dialect"] == "handle"
        assert isinstance(record["answered"], int)
        assert record["answered"] > 5


def test_cpu_time_is_reported_by_deployment(service: Service) -> None:
    service.wait_for_one_replica()
    driver_pid = service.process.processes()[0].pid
    record = run_bench(service, service.url, "--pid", str(driver_pid))
    assert isinstance(record["cpu_by_process"], dict)
    assert "Embedder" in record["cpu_by_process"]
    # Ray may start another one for the load of the run.
    assert record["replicas"] in (1, len(service.replica_pids("Embedder")))
