"""`embedserve capacity`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedserve_client.command.main import main
from serve_app.command.config_file import read_config
from serve_app.config import EmbedderSettings, PolicySettings

#: A slow model: the faster it is, the more texts the simulation has.
COST = ("--cost", "0.02,0.001")
WISH = ("--rate", "30/s", "--p99", "500ms")


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(["capacity", "plan", "--json", *COST, *args]) == 0
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


@pytest.fixture
def hashing_config(tmp_path: Path) -> Path:
    path = tmp_path / "hashing.yaml"
    model = {
        "name": "m",
        "source": "hashing:8",
        "batch_cost": {"fixed_s": 0.004, "token_s": 0.0002},
    }
    application = {"name": "a", "import_path": "serve_app.app:build", "args": {"model": model}}
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


def test_the_plan_keeps_the_latency_with_the_fewest_replicas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(capsys, *WISH)
    # One replica computes 600 to 800 of the 600 tokens/s: its queue would grow.
    assert plan["busy_replicas"] == 2
    assert plan["quiet_replicas"] == 1
    assert plan["p50_s"] < plan["p99_s"] <= 0.5
    more = planned(capsys, "--rate", "120/s", "--p99", "500ms")
    assert 4 <= more["busy_replicas"] <= 7
    assert more["utilization"] > plan["utilization"], "Larger groups of replicas share peaks."


def test_bulk_texts_get_replicas_in_the_quiet_hours(capsys: pytest.CaptureFixture[str]) -> None:
    without = planned(capsys, *WISH)
    plan = planned(capsys, *WISH, "--bulk-tokens-per-day", "2e8", "--busy-hours", "12")
    quiet_s, capacity = 12 * 3600, plan["capacity_tokens_per_s"]
    assert 2e8 / quiet_s <= plan["bulk_replicas"] * capacity <= 2e8 / quiet_s + capacity
    assert plan["max_replicas"] >= plan["bulk_replicas"] + plan["quiet_replicas"]
    assert plan["max_replicas"] > without["max_replicas"]


def test_the_price_follows_from_the_machines(capsys: pytest.CaptureFixture[str]) -> None:
    machine = ("--price", "2.0", "--replicas-per-machine", "4")
    plan = planned(capsys, *WISH, *machine)
    assert plan["price"]["an_hour_at_the_busiest_time"] == 2.0
    days = 365.25 / 12
    assert plan["price"]["a_month"] == pytest.approx(plan["replica_hours_per_day"] * 0.5 * days)
    assert plan["price"]["a_million_tokens"] > 0
    assert planned(capsys, *WISH)["price"] == {}


def test_the_printed_configuration_is_valid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["capacity", "plan", "--yaml", *COST, *WISH, "--low-rate", "60/min"]) == 0
    deployments = yaml.safe_load(capsys.readouterr().out)
    application = {
        "name": "a",
        "import_path": "serve_app.app:build",
        "deployments": deployments,
    }
    path = tmp_path / "planned.yaml"
    path.write_text(yaml.safe_dump({"applications": [application]}))
    config, _ = read_config(path)
    (embedder,) = config["applications"][0]["deployments"]
    assert EmbedderSettings.parse(embedder["user_config"]).batch_target_s <= 0.25
    policy = embedder["autoscaling_config"]["policy"]["policy_kwargs"]
    assert PolicySettings.parse(policy).target_queue_s < 0.5


def test_people_read_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capacity", "plan", *COST, *WISH, "--price", "1"]) == 0
    output = capsys.readouterr().out
    for text in ("replicas at the busiest time", "price of a month", "policy_function"):
        assert text in output


def test_a_wish_that_cannot_be_met_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("--rate", "2/s", "--p99", "200ms", "--tokens", "200")
    assert main(["capacity", "plan", *COST, *wish]) == 1
    assert "however many replicas" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--rate", "300"), ("--rate", "0/s"), ("--p99", "50"), ("--p99", "0ms")]
)
def test_amounts_need_units(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    args = {"--rate": "1/s", "--p99": "1s", option: value}
    with pytest.raises(SystemExit):
        main(["capacity", "plan", *COST, *(x for pair in args.items() for x in pair)])
    assert "such as" in capsys.readouterr().err


def test_a_measured_record_is_planned_with(
    capsys: pytest.CaptureFixture[str], hashing_config: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    config = ("--config", str(hashing_config))
    assert main(["capacity", "measure", *config, "-o", str(record)]) == 0
    assert "--cost 0.004" in capsys.readouterr().out
    options = ("--record", str(record), "--json")
    assert main(["capacity", "plan", *config, *options, "--rate", "50/s", "--p99", "100ms"]) == 0
    assert json.loads(capsys.readouterr().out)["busy_replicas"] == 1


def test_another_file_is_no_record(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"cost": 3}')
    assert main(["capacity", "plan", "--record", str(other), *WISH]) == 1
    assert "capacity measure -o FILE" in capsys.readouterr().err
