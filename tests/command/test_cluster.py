from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from embedserve_client.command.main import main
from serve_app.command.cluster import single_machine_settings

ROOT = Path(__file__).parents[2]


def packaged(file: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return config


def test_settings_that_do_not_fit_to_several_machines() -> None:
    (host,) = single_machine_settings(packaged("serve_config.yaml"))
    assert "`http_options.host: 0.0.0.0`" in host
    assert single_machine_settings(packaged("configs/cluster.yaml")) == []


def test_a_service_without_http_may_listen_on_loopback() -> None:
    config = packaged("configs/cluster.yaml") | {"proxy_location": "Disabled"}
    config["http_options"]["host"] = "127.0.0.1"
    assert single_machine_settings(config) == []


@pytest.mark.parametrize("command", [["cache", "stats"], ["cache", "purge"], ["deploy"]])
def test_without_a_cluster_the_message_says_what_a_standalone_service_offers(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else the command sets it
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "No Ray cluster at 'auto'" in message
    assert "`--standalone`" in message
    assert "Traceback" not in message
