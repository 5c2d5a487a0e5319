"""A short run of the fuzzer that sends raw bytes, through the real HAProxy."""

from tests import raw_fuzz
from tests.on_ray.conftest import Service


async def test_raw_bytes_get_responses_in_the_documented_format(service: Service) -> None:
    report = await raw_fuzz.run(service.url, range(300), seed=1)
    assert report.problems == {}
    assert {"200", "400", "404", "422"} <= {*report.statuses}
