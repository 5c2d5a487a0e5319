"""`embedserve cost`, on a real server."""

import asyncio
import csv
import io
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.access.ledger import Usage
from serve_app.access.shared_ledger import SharedLedger
from serve_app.config import CacheConfig
from serve_app.metrics import Meter
from serve_app.valkey.shared_server import SharedServer
from tests.valkey_server import ValkeyProcess

TODAY = datetime.now(UTC)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey") as process:
        yield process


async def add_usage(cache: dict[str, Any], owner_pid: int = 0) -> None:
    """Adds the usage of two models on two days, as two processes do."""
    config = CacheConfig.model_validate(cache)
    for age, model in ((0, "a"), (1, "b")):
        server = SharedServer(config, service="test", owner_pid=owner_pid or os.getpid())
        ledger = SharedLedger(
            server,
            prefix=config.prefix,
            timeout_s=1,
            meter=Meter(),
            clock=lambda: TODAY - timedelta(age),  # noqa: B023
        )
        ledger.add(model, "bob", Usage(1, 2, 1, 3000, 2000, 1_500_000_001, 7))
        while ledger.state == "down" or not await ledger.write():
            await asyncio.sleep(0.01)
        await ledger.close()


def config_file(folder: Path, cache: dict[str, Any]) -> str:
    """Writes a configuration with these settings of the cache."""
    file = folder / "config.yaml"
    args = {"model": {"name": "m", "source": "hashing:8"}, "cache": cache}
    application = {"name": "x", "import_path": "serve_app.app:build", "args": args}
    file.write_text(yaml.safe_dump({"applications": [application]}), "utf-8")
    return str(file)


def test_the_costs_of_the_shared_server(
    tmp_path: Path, valkey: ValkeyProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = {"url": valkey.url, "prefix": "mine"}
    asyncio.run(add_usage(cache))
    config = config_file(tmp_path, cache)

    assert main(["cost", config]) == 0
    table = capsys.readouterr().out
    assert "1.500000001" in table
    (total,) = [line for line in table.splitlines() if "total" in line]
    assert "3.000000002" in total
    assert "6,000" in total

    assert main(["cost", config, "--json", "--by", "day", "--since", str(TODAY.date())]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["day"] for row in report["rows"]] == [str(TODAY.date())]
    assert report["total"]["cost_usd"] == "1.500000001"

    assert main(["cost", config, "--csv", "--by", "key"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["key"] == "bob"
    assert row["saved_usd"] == "0.000000014"


def test_the_costs_of_the_embedded_server_while_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = {"url": "embedded", "data_dir": str(tmp_path / "data")}
    config = config_file(tmp_path, cache)
    assert main(["cost", config]) == 1
    assert "No embedded server runs in" in capsys.readouterr().err
    with subprocess.Popen(["sleep", "3600"]) as owner:
        try:
            asyncio.run(add_usage(cache, owner.pid))
            assert main(["cost", config, "--json", "--by", "model"]) == 0
        finally:
            owner.kill()
    report = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in report["rows"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "--by", "size"], "`by` is a list of day, model, key"),
        (["none", "--since", "x"], "`since` is a day"),
        (["none"], "Set `cache.url` to a Redis or Valkey server"),
        (["redis://127.0.0.1:1"], "The server of `cache.url` can't be read: no connection"),
    ],
)
def test_an_error_says_how_to_mend_it(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url, *options = arguments
    assert main(["cost", config_file(tmp_path, {"url": url}), *options]) == 1
    assert message in capsys.readouterr().err
