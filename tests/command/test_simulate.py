"""`embedserve simulate`."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedserve_client.command.main import main

COST = ("--cost", "0.004,0.0002")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose settings the simulation must follow."""
    path = tmp_path / "config.yaml"
    policy = {
        "policy_function": "serve_app.autoscale:TokenPolicy",
        "policy_kwargs": {"default_startup_s": 3},
    }
    embedder = {
        "name": "Embedder",
        "user_config": {"batch_target_s": 0.1},
        "autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "policy": policy},
    }
    model = {
        "name": "m",
        "source": "hashing:8",
        "batch_cost": {"fixed_s": 0.01, "token_s": 0.001},
    }
    application = {
        "name": "embedserve",
        "import_path": "serve_app.app:build",
        "args": {"model": model},
        "deployments": [embedder],
    }
    path.write_text(yaml.safe_dump({"applications": [application]}))
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A minute with few texts, and a minute with as many tokens as four replicas compute."""
    lines = [f"{second + i / 10},40" for second in range(60) for i in range(2)]
    lines += [f"{60 + i / 80},40,interactive" for i in range(80 * 60)]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines))
    return path


def simulated(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, Any]:
    assert main(["simulate", "--json", *map(str, args)]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_settings_of_the_file_are_followed(
    capsys: pytest.CaptureFixture[str], config: Path, trace: Path
) -> None:
    result = simulated(capsys, trace, "--config", config, "--policy", "tokens")
    (policy,) = result["policies"]
    assert result["capacity_tokens_per_s"] == pytest.approx(0.85 * 90 / 0.1)
    assert policy["replicas"][:60] == [2] * 60
    assert max(policy["replicas"]) == 5
    first = policy["changes"][0]
    assert 60 <= first["at_s"] <= 64
    assert first["reason"]
    assert policy["replicas"][int(first["at_s"]) + 4] > 2, "A replica starts within 3 s."


def test_policies_are_compared(
    capsys: pytest.CaptureFixture[str], config: Path, trace: Path
) -> None:
    names = "tokens,ray,ray-tuned,fixed:5"
    assert main(["simulate", str(trace), "--config", str(config), "--policy", names]) == 0
    output = capsys.readouterr().out
    for title in ("log, simulated", "tokens", "Ray's default", "Ray's, tuned", "fixed: 5"):
        assert title in output
    assert "bulk" not in output, "The trace has no bulk texts."


def test_stdin_is_a_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "timestamp,tokens,lane\n2026-11-28T10:00:00Z,30\n2026-11-28T10:00:09Z,300,bulk\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    result = simulated(capsys, "-", *COST, "--policy", "tokens")
    assert len(result["policies"][0]["replicas"]) == 10


def test_a_sample_is_written_and_read_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "spike.csv"
    options = (*COST, "--policy", "fixed:2", "--scale", "0.02")
    written = simulated(capsys, "spike", *options, "--save-trace", file)
    read = simulated(capsys, file, *options[:-2])
    assert read["policies"][0]["waiting_s"] == written["policies"][0]["waiting_s"]


def test_a_load_for_a_thousand_replicas_is_simulated_as_a_fluid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--cost", "0.002,0.00001", "--max-replicas", "2000", "--policy", "tokens,ray")
    result = simulated(capsys, "steady", "--scale", "8400", *options)
    assert result["fluid"]
    ours = result["policies"][0]
    assert 1000 < max(ours["replicas"]) < 2000
    assert ours["waiting_s"]["interactive"]["p99"] < 0.5


def test_it_is_plotted(capsys: pytest.CaptureFixture[str], trace: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    simulated(capsys, trace, *COST, "--policy", "tokens", "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "no file nothing, and no sample"),
        (["spike", "--policy", "best"], "no policy 'best'. Choose from tokens"),
        (["spike", "--policy", "fixed"], "fixed:N"),
        (["spike", "--deployment", "Ingress"], "no deployment 'Ingress' that runs models"),
        (["spike", "--min-replicas", "9"], "The range is empty"),
        (["spike", "--scale", "0"], "--scale must be above 0"),
        (["steady", "--scale", "99", "--policy", "oracle"], "The oracle simulates each text"),
        (["steady", "--scale", "99", "--save-trace", "x.csv"], "leave out --save-trace"),
    ],
)
def test_errors_say_how_to_mend_them(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main(["simulate", *args, *COST]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("cost", ["1", "a,b", "-1,1", "0,0"])
def test_an_impossible_cost_is_refused(capsys: pytest.CaptureFixture[str], cost: str) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "spike", f"--cost={cost}"])
    assert "--cost" in capsys.readouterr().err


def test_a_cost_that_is_not_known_is_asked_for(
    capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    content = yaml.safe_load(config.read_text())
    del content["applications"][0]["args"]["model"]["batch_cost"]
    config.write_text(yaml.safe_dump(content))
    assert main(["simulate", "spike", "--config", str(config)]) == 1
    assert "embedserve capacity measure" in capsys.readouterr().err
