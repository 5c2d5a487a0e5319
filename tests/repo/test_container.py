"""The Dockerfile, Docker Compose's file and the systemd unit agree with the service."""

import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compose_spec
import psutil
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from serve_app.command.config_file import config_path, read_config
from tests.repo.source import ROOT

DOCKERFILE = ROOT / "Dockerfile"
UNIT = ROOT / "configs" / "systemd" / "embedserve.service"
COMPOSE = ROOT / "configs" / "compose.yaml"
#: What stopping takes after the drain timeout, as docs/operate.md says.
STOP_S = 10


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    return found


# Dockerfile


def parse_dockerfile(file: Path) -> list[tuple[str, str]]:
    """Returns the name and the arguments of each instruction, without comments."""
    with file.open("rb") as content:
        parsed = DockerfileParser(fileobj=content).structure
    return [(i["instruction"], i["value"]) for i in parsed if i["instruction"] != "COMMENT"]


def instructions(stage: str) -> dict[str, list[str]]:
    """Returns the instructions of a stage, without those of the stage that it is built from."""
    found: dict[str, list[str]] = {}
    current = ""
    for name, value in parse_dockerfile(DOCKERFILE):
        if name == "FROM":
            current = value.partition(" AS ")[2]
        elif current == stage:
            found.setdefault(name, []).append(value)
    return found


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    completed = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, "")


def test_the_service_runs_without_a_shell_and_without_privileges() -> None:
    runtime = instructions("runtime")
    assert runtime["ENTRYPOINT"] == ['["tini", "--", "embedserve"]']
    assert runtime["USER"] == ["10001"]
    assert runtime["STOPSIGNAL"] == ["SIGTERM"]


def test_the_last_stage_is_the_cpu_image() -> None:
    stages = [value for name, value in parse_dockerfile(DOCKERFILE) if name == "FROM"]
    assert stages[-1] == "runtime AS cpu", "`docker build` without a target builds the last stage."


@pytest.mark.parametrize(("stage", "config"), [("cpu", "container"), ("cuda", "container-gpu")])
def test_an_image_serves_a_packaged_configuration(stage: str, config: str) -> None:
    (command,) = instructions(stage)["CMD"]
    assert json.loads(command) == ["serve", config]
    content, application = read_config(config_path(config))
    assert instructions("runtime")["EXPOSE"] == [str(content["http_options"]["port"])]
    (data,) = instructions("runtime")["VOLUME"]
    assert (application.cache.data_dir or "").startswith(f"{data}/")


def test_the_cpu_image_has_the_prepared_model_of_its_configuration() -> None:
    assert instructions("prepared")["RUN"] == ["embedserve prepare container"]
    _, application = read_config(config_path("container"))
    assert application.precision == "fp32", "Any machine builds the image."
    _, application = read_config(config_path("container-valkey"))
    assert application.precision == "fp32", "It serves the same prepared model."


def test_the_health_check_needs_no_key() -> None:
    (check,) = instructions("runtime")["HEALTHCHECK"]
    assert "http://127.0.0.1:8000/health" in check


def test_the_context_has_every_source_of_the_image_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    included = {line[1:] for line in lines if line.startswith("!")}
    copied = [
        word
        for name, value in parse_dockerfile(DOCKERFILE)
        if name == "COPY" and not value.startswith("--from")
        for word in value.split()[:-1]
    ]
    assert "*" in lines
    assert included == set(copied)
    assert all((ROOT / path).exists() for path in copied)


def test_the_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    default = next(v for v in instructions("build")["ARG"] if v.startswith("EXTRAS="))
    extras = default.split('"')[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])


def test_the_list_of_dependencies_is_that_of_the_project(tmp_path: Path) -> None:
    (_, command, _) = instructions("build")["RUN"]
    script = command.partition("> requirements.txt")[0]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    printed = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script.replace("python -c", f"{sys.executable} -c")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    expected = [d for d in project["dependencies"] if not d.startswith("embedserve-client")]
    assert printed.stdout.splitlines() == expected


# Docker Compose


def test_the_compose_file_is_valid() -> None:
    parsed = compose_spec.PyCompose.from_yaml(COMPOSE.read_text("utf-8"))
    parsed.validate()
    assert sorted(parsed.service_names()) == [
        "embedserve",
        "grafana",
        "keys",
        "prometheus",
        "valkey",
    ]


def test_a_misspelled_option_is_found() -> None:
    text = COMPOSE.read_text("utf-8").replace("stop_grace_period", "stop_grace_time")
    with pytest.raises(ValueError, match="stop_grace_time"):
        compose_spec.PyCompose.from_yaml(text)


def test_ports_are_published_on_this_machine_only(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in services["valkey"]


def test_containers_have_few_rights(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert services["embedserve"]["read_only"] is True


def test_images_have_versions(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_the_files_that_it_mounts_exist(services: dict[str, dict[str, Any]]) -> None:
    sources = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]
    assert sources
    assert [source for source in sources if not (COMPOSE.parent / source).exists()] == []


def test_the_grace_period_is_longer_than_the_drain(services: dict[str, dict[str, Any]]) -> None:
    service = services["embedserve"]
    command = service["command"]
    drain_s = float(command[command.index("--drain-timeout") + 1])
    assert float(service["stop_grace_period"].rstrip("s")) >= drain_s + STOP_S


def test_the_service_uses_the_cache_of_the_compose_file(
    services: dict[str, dict[str, Any]],
) -> None:
    _, application = read_config(config_path(services["embedserve"]["command"][1]))
    assert application.cache.url.get_secret_value() == "redis://valkey:6379/0"
    assert set(services["valkey"]["networks"]) <= set(services["embedserve"]["networks"])


def test_the_first_start_makes_one_key(services: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    service = services["keys"]
    (script,) = service["command"]
    keys, temporary = tmp_path / "keys", tmp_path / "tmp"
    others = psutil.Process().children()
    keys.mkdir()
    temporary.mkdir()
    script = script.replace("/tmp/", f"{temporary}/").replace("/etc/embedserve", str(keys))
    script = script.replace("embedserve key", f"{sys.executable} -m serve_app.command.main key")
    for _ in range(2):  # the second start keeps it
        subprocess.run([*service["entrypoint"], script], check=True, cwd=ROOT)
        made = sorted((file.name, file.read_bytes()) for file in keys.iterdir())
        assert [name for name, _ in made] == ["client.key", "keys.yaml"]
    key = (keys / "client.key").read_text("utf-8")
    (entry,) = yaml.safe_load((keys / "keys.yaml").read_text("utf-8"))["keys"]
    hashed = subprocess.run(
        [sys.executable, "-m", "serve_app.command.main", "key", "hash"],
        input=key,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert entry["sha256"] in hashed.stdout
    assert set(psutil.Process().children()) <= set(others)


def test_prometheus_reads_the_metrics_with_the_key(
    services: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    service = services["prometheus"]
    (script,) = service["command"]
    script, _, _ = script.replace("/tmp/", f"{tmp_path}/").partition("exec prometheus")
    folder = str(ROOT / "configs" / "monitoring")
    subprocess.run([*service["entrypoint"], script.replace("/etc/prometheus", folder)], check=True)
    (job,) = yaml.safe_load((tmp_path / "prometheus.yml").read_text("utf-8"))["scrape_configs"]
    assert job["authorization"] == {"credentials_file": "/etc/embedserve/client.key"}
    assert job["static_configs"] == [{"targets": ["embedserve:8000"]}]
    assert (tmp_path / "alerts.yml").is_file()


# systemd


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT, "utf-8")
    return parser


def test_the_unit_stops_the_command_alone_and_waits_for_it() -> None:
    service = unit()["Service"]
    drain_s = float(service["ExecStart"].split("--drain-timeout ")[1])
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) >= drain_s + STOP_S
    assert "MemoryDenyWriteExecute" not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    file = tmp_path / UNIT.name
    program = "/opt/embedserve/bin/embedserve"
    file.write_text(UNIT.read_text("utf-8").replace(program, sys.executable), "utf-8")
    completed = subprocess.run(
        ["systemd-analyze", "verify", file], capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't installed")
def test_the_unit_exposes_little() -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(UNIT)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout[-400:]
