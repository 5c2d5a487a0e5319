"""Ray and the service accept every configuration file of the repository."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.command.config_file import check_access, http_address, read_config
from serve_app.config import AppConfig, PolicySettings, deployment_names, user_config_type
from tests.repo.source import CONFIG_FILES, ROOT

#: Their number of replicas is fixed.
FIXED = ("Ingress", "CacheLookup", "Providers")
#: Reachable from other machines, with API keys.
REMOTE = ("cluster", "container", "container-gpu", "container-valkey")
FILES = CONFIG_FILES


LOCAL = [file for file in FILES if file.stem not in REMOTE]


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(request.param.read_text(encoding="utf-8"))
    return loaded


def test_it_is_valid(config: dict[str, Any]) -> None:
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert (application.name, application.import_path) == ("embedserve", "serve_app.app:build")
    args = AppConfig.parse(application.args)
    names = tuple(deployment.name for deployment in application.deployments)
    assert names == deployment_names(args)
    for deployment in config["applications"][0]["deployments"]:
        section = user_config_type(args, deployment["name"])
        assert section is not None
        section.parse(deployment.get("user_config"))


def test_the_example_of_spill_over_is_valid() -> None:
    section = (ROOT / "docs" / "autoscaling.md").read_text("utf-8").split("\n## Spill-over\n")[1]
    example = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    example |= {"name": "embedserve", "import_path": "serve_app.app:build"}
    (application,) = ServeDeploySchema.model_validate({"applications": [example]}).applications
    args = AppConfig.parse(application.args)
    assert tuple(d.name for d in application.deployments) == deployment_names(args)
    assert args.served_models[0].spill_over_after_s is not None


@pytest.mark.parametrize("file", LOCAL, ids=lambda file: file.name)
def test_it_is_reachable_from_this_machine_only(file: Path) -> None:
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert config["http_options"]["host"] == "127.0.0.1"


@pytest.mark.parametrize("name", REMOTE)
def test_from_other_machines_it_is_reachable_with_keys(name: str) -> None:
    file = next(file for file in FILES if file.stem == name)
    config, _ = read_config(file)
    assert http_address(config) == ("0.0.0.0", 8000)
    check_access(config)
    server = config["applications"][0]["deployments"][0]
    assert server["user_config"]["access"] == {"keys_file": "/etc/embedserve/keys.yaml"}


def test_models_scale_by_tokens_and_never_to_zero(config: dict[str, Any]) -> None:
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] in FIXED:
            continue
        scaling = deployment["autoscaling_config"]
        assert scaling["min_replicas"] >= 1
        assert scaling["policy"]["policy_function"] == "serve_app.autoscale:TokenPolicy"
        assert scaling["metrics_interval_s"] == 1
        # Up at once; down after the delay of the policy, on top of which Ray's would come.
        assert scaling["upscale_delay_s"] == scaling["downscale_delay_s"] == 0
        settings = PolicySettings.parse(scaling["policy"].get("policy_kwargs"))
        assert settings.downscale_delay_s >= 30


def test_only_models_scale(config: dict[str, Any]) -> None:
    for deployment in config["applications"][0]["deployments"]:
        if deployment["name"] in FIXED:
            assert "autoscaling_config" not in deployment


def test_haproxy_is_set_up_as_in_the_default(config: dict[str, Any]) -> None:
    default = yaml.safe_load(FILES[0].read_text(encoding="utf-8"))
    expected, actual = (
        content["controller_options"]["runtime_env"]["env_vars"] for content in (default, config)
    )
    if "max_replicas_per_node" in config["applications"][0]["deployments"][0]:
        # On several machines: behind a load balancer, which notices late.
        expected |= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30"}
    if actual["RAY_SERVE_ENABLE_HA_PROXY"] == "1":
        assert actual == expected


def test_the_default_needs_no_environment_variable() -> None:
    config = yaml.safe_load(FILES[0].read_text(encoding="utf-8"))
    env = config["controller_options"]["runtime_env"]["env_vars"]
    assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == "1"
