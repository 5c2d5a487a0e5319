"""`embedserve cost`, on a real server."""

import asyncio
import csv
import io
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import yaml

from embedserve_client.command.main import main
from serve_app.access.entrance import Entrance
from serve_app.access.keys import digest
from serve_app.access.ledger import MemoryLedger, Usage
from serve_app.access.quota import MemoryQuotaStore
from serve_app.access.shared_ledger import SharedLedger
from serve_app.config import AccessSettings, ApiKey, CacheConfig, IngressSettings
from serve_app.meter import Meter
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.valkey.shared_server import SharedServer
from serve_app.web.app import create_app
from tests.fakes import SPEC, FakeBackend
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


@pytest.fixture
def service() -> Iterator[str]:
    """The URL of a service on which the key `bob` has used a model."""
    spec = replace(SPEC, nano_usd_per_1k_tokens=1)
    key = ApiKey(name="bob", sha256=digest("es-bob"))
    ledger = MemoryLedger()
    for name in ("bob", "eve"):
        ledger.add("m", name, Usage(1, 2, 1, 3000, 2000, 2**60 + 1, 7))
    entrance = Entrance(MemoryQuotaStore(), ledger=ledger)
    entrance.apply(AccessSettings(keys=(key,)))
    app = create_app(Catalog([EmbedService(spec, FakeBackend(), IngressSettings())]), entrance)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def test_the_costs_that_a_service_reports(
    service: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cost", service, "--key", "es-bob", "--json", "--by", "key"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["key"], row["cost_usd"]) == ("bob", "1152921504.606846977")
    monkeypatch.setenv("EMBEDSERVE_URL", service)
    monkeypatch.setenv("EMBEDSERVE_API_KEY", "es-bob")
    assert main(["cost", "--since", "2000-01-01", "--until", "2000-01-02", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model,key,requests,texts,computed_texts,tokens,computed_tokens,cost_usd,saved_usd"
    ]
    assert main(["cost", "--key", "wrong"]) == 1
    assert "/cost: HTTP 401. This service doesn't know the API key." in capsys.readouterr().err


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
