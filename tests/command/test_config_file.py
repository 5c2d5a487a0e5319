import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.command.config_file import (
    add_config_argument,
    check_access,
    http_address,
    http_url,
    read_config,
    standalone_settings,
    unknown_canary_keys,
)
from serve_app.config import AppConfig, EmbedServerSettings
from serve_app.errors import ConfigurationError
from tests.repo.source import CONFIG_FILES, ROOT


def config(**user_configs: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration with these deployments."""
    deployments = [{"name": n, "user_config": settings} for n, settings in user_configs.items()]
    return {"applications": [{"name": "embedserve", "deployments": deployments}]}


def test_standalone_takes_the_settings_of_either_topology() -> None:
    expected = EmbedServerSettings(max_texts_per_request=7, max_queued_tokens=70_000)
    separate = config(
        Ingress={"max_texts_per_request": 7, "max_in_flight_calls": 3},
        CacheLookup={"l1_max_bytes": 1},
        Embedder={"max_queued_tokens": 70_000},
    )
    colocated = config(EmbedServer={"max_texts_per_request": 7, "max_queued_tokens": 70_000})
    assert standalone_settings(separate) == expected
    assert standalone_settings(colocated) == expected


def test_standalone_settings_without_any_are_the_defaults() -> None:
    for content in (config(), config(Ingress={}), {"applications": [{"name": "e"}]}):
        assert standalone_settings(content) == EmbedServerSettings()


@pytest.mark.parametrize("file", ["serve_config.yaml", "configs/one-machine.yaml"])
def test_a_file_is_read_with_and_without_ray(file: str) -> None:
    assert read_config(ROOT / file) == read_config(ROOT / file, ray=False)


@pytest.mark.parametrize(
    "content", ["", "- a", "applications: []", "applications: [{args: {x: 1}}]"]
)
def test_an_invalid_file_is_an_error_without_ray(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match="is not a valid configuration"):
        read_config(file, ray=False)


def test_the_address_has_rays_defaults() -> None:
    assert http_address({}) == ("0.0.0.0", 8000)
    assert http_address({"http_options": {"host": "::1", "port": 1}}) == ("::1", 1)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_the_url_of_a_host(host: str, url: str) -> None:
    assert http_url(host, 80) == url


@pytest.mark.parametrize(
    ("topology", "deployment"), [("separate", "Ingress"), ("colocated", "EmbedServer")]
)
def test_other_machines_need_a_key_of_the_deployment_that_takes_requests(
    tmp_path: Path, topology: str, deployment: str
) -> None:
    access = {"keys": [{"name": "a", "sha256": "ab" * 32}]}
    content = config(**{deployment: {"access": access}, "Other": {}})
    content["applications"][0]["args"] = {"topology": topology}
    check_access(content)
    for host, allowed in (("127.0.0.1", True), ("0.0.0.0", False)):
        content = config(**{deployment: {}}) | {"http_options": {"host": host}}
        content["applications"][0]["args"] = {"topology": topology}
        if allowed:
            check_access(content)
        else:
            with pytest.raises(ConfigurationError, match="API key"):
                check_access(content)
    check_access(content | {"proxy_location": "Disabled"})


CONFIGS = [file.stem for file in CONFIG_FILES if file.parent.name == "configs"]


def selected_config(*arguments: str) -> Path:
    """Returns the file that a command line selects."""
    parser = argparse.ArgumentParser()
    add_config_argument(parser)
    config: Path = parser.parse_args(arguments).config
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packaged_configuration_has_a_name(name: str) -> None:
    file = selected_config(name)
    assert file.read_text("utf-8") == (ROOT / "configs" / f"{name}.yaml").read_text("utf-8")
    read_config(file, ray=False)


def test_the_file_of_docker_compose_is_no_configuration() -> None:
    assert (ROOT / "configs" / "compose.yaml").is_file()
    assert selected_config("compose") == Path("compose")


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "portable").write_text("applications: []", "utf-8")
    assert selected_config("portable").resolve() == tmp_path / "portable"


@pytest.mark.parametrize(
    ("platform", "file"),
    [
        ("linux", "serve_config.yaml"),
        ("darwin", "configs/portable.yaml"),
        ("win32", "configs/portable.yaml"),
    ],
)
def test_the_default_runs_on_each_platform(tmp_path: Path, platform: str, file: str) -> None:
    code = f"""
import argparse, sys, yaml, pydantic
import serve_app.access.entrance, serve_app.config
sys.platform = {platform!r}
from serve_app.command.config_file import add_config_argument
parser = argparse.ArgumentParser()
add_config_argument(parser)
print(parser.parse_args([]).config.read_text("utf-8"), end="")
"""
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert completed.stdout == (ROOT / file).read_text("utf-8")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=", ".join(CONFIGS)):
        read_config(selected_config("portabel"), ray=False)


def test_the_configurations_are_installed_with_the_package() -> None:
    code = """
from setuptools import Distribution
distribution = Distribution()
distribution.parse_config_files(["pyproject.toml"])
distribution.include_package_data = False  # else it writes a manifest
build = distribution.get_command_obj("build_py")
build.ensure_finalized()
print(*(f"{package}/{file}" for package, _, _, files in build.data_files for file in files))
"""
    completed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    files = set(completed.stdout.split())
    installed = {"serve_app/serve_config.yaml", "serve_app.command/reference_vectors.json"}
    assert {*installed, *(f"serve_app/configs/{name}.yaml" for name in CONFIGS)} <= files


@pytest.mark.parametrize(
    ("kwargs", "fault"),
    [
        ({"headrom": 0.3}, "policy_kwargs: headrom: there is no such setting"),
        ({"target_queue_s": 0}, "target_queue_s: Input should be greater than 0"),
    ],
)
def test_impossible_settings_of_the_policy_are_refused(
    tmp_path: Path, kwargs: dict[str, Any], fault: str
) -> None:
    content = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    (embedder,) = (
        deployment
        for deployment in content["applications"][0]["deployments"]
        if deployment["name"] == "Embedder"
    )
    embedder["autoscaling_config"]["policy"]["policy_kwargs"] = kwargs
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content), "utf-8")
    with pytest.raises(ConfigurationError, match=fault):
        read_config(file, ray=False)


@pytest.mark.parametrize(
    ("file", "deployment", "is_refused"),
    [
        ("serve_config.yaml", "Embedder", False),
        ("serve_config.yaml", "Ingress", True),
        ("configs/one-machine.yaml", "EmbedServer", True),
    ],
)
def test_a_deployment_that_takes_requests_cannot_scale_to_zero(
    tmp_path: Path, file: str, deployment: str, *, is_refused: bool
) -> None:
    content = yaml.safe_load((ROOT / file).read_text("utf-8"))
    for entry in content["applications"][0]["deployments"]:
        if entry["name"] == deployment:
            entry.pop("num_replicas", None)
            entry.setdefault("autoscaling_config", {})["min_replicas"] = 0
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    if is_refused:
        with pytest.raises(ConfigurationError, match=f"{deployment}: with `min_replicas: 0`"):
            read_config(path, ray=False)
    else:
        read_config(path, ray=False)


def canary_config(names: list[str], **access: Any) -> dict[str, Any]:
    content = config(Ingress={"access": access})
    models = [{"name": name, "source": "hashing:8"} for name in ("first", "second")]
    alias = {"name": "words", "model": "first", "canary": {"model": "second", "keys": names}}
    content["applications"][0]["args"] = {"models": models, "aliases": [alias]}
    return content


def test_a_canary_for_a_key_that_does_not_exist_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: bob, sha256: {'b' * 64}}}]", "utf-8")
    access = {"keys": [{"name": "alice", "sha256": "a" * 64}], "keys_file": str(file)}
    for keys, told in ((["alice", "bob"], []), (["alice", "bop"], ["bop"])):
        content = canary_config(keys, **access)
        application = AppConfig.parse(content["applications"][0]["args"])
        warnings = unknown_canary_keys(content, application)
        assert len(warnings) == len(told)
        assert all("for bop," in text and "Known: alice, bob" in text for text in warnings)


def test_keys_that_cannot_be_read_here_are_no_reason_to_warn(tmp_path: Path) -> None:
    content = canary_config(["bob"], keys_file=str(tmp_path / "on another machine.yaml"))
    application = AppConfig.parse(content["applications"][0]["args"])
    assert unknown_canary_keys(content, application) == []
