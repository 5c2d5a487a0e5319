import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from serve_app.engines.cpu_quota import read_cpu_quota


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),  # in a container
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/", {}, math.inf),
        (
            "0::/user.slice/a.service",
            {
                "user.slice/cpu.max": "200000 100000",
                "user.slice/a.service/cpu.max": "400000 100000",
            },
            2,
        ),
        (
            "4:memory:/docker/f00d\n2:cpu,cpuacct:/docker/f00d",  # version 1
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            0.5,
        ),
        (
            "2:cpu,cpuacct:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            math.inf,
        ),
    ],
)
def test_the_smallest_limit_of_the_cgroups_counts(
    membership: str, files: Mapping[str, str], quota: float, tmp_path: Path
) -> None:
    own = tmp_path / "cgroup"
    own.write_text(membership)
    for name, content in files.items():
        file = tmp_path / "fs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert read_cpu_quota(tmp_path / "fs", own) == quota


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert read_cpu_quota(tmp_path, tmp_path / "missing") == math.inf
