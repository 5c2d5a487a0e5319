"""A short run of the fuzzer that sends raw bytes, through the real HAProxy."""

from tests import leaving_clients, raw_fuzz
from tests.on_ray.conftest import EVERYWHERE, METRICS_DELAY_S, ON_RAY, Service


@ON_RAY
async def test_raw_bytes_get_responses_in_the_documented_format(service: Service) -> None:
    report = await raw_fuzz.run(service.url, range(300), seed=1)
    assert report.problems == {}
    assert {"200", "400", "404", "422"} <= {*report.statuses}


@EVERYWHERE
async def test_nothing_is_computed_for_clients_that_left(service: Service) -> None:
    incomplete, *complete = await leaving_clients.measure(
        service.url, clients=160, seed=1, export_s=METRICS_DELAY_S
    )
    assert incomplete.computed == 0
    assert [phase for phase in complete if phase.computed > phase.allowed] == []
    assert complete[-1].computed < complete[-1].sent / 2  # most would take longer than they stay
