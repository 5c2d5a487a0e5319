"""`embedserve check` on the default model."""

import json
import re
import subprocess

import pytest

from tests.on_ray.conftest import EMBEDSERVE, SEPARATE, STANDALONE, Service


@pytest.mark.parametrize("service", [SEPARATE, STANDALONE], indirect=True)
def test_a_service_passes_the_check(service: Service) -> None:
    completed = subprocess.run(
        [*EMBEDSERVE, "check", "--json", service.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(completed.stdout)
    assert [check for check in report["checks"] if check["state"] == "failed"] == []
    assert (completed.returncode, report["ok"], report["url"]) == (0, True, service.url)
    checks = {check["name"]: check for check in report["checks"]}
    assert [name for name in checks if checks[name]["state"] == "skipped"] == [
        "keys",
        "other models",
    ]
    assert re.match(r"cosine >= [01]\.9*\d* at \w+$", checks["reference vectors"]["remark"])
