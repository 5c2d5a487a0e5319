"""Which models a roll-out tries on the cluster before it replaces replicas."""

from typing import Any

import pytest

from serve_app.command.engine_trial import replaced_engines

MODEL = {"name": "words", "source": "hashing:8"}


def application(args: dict[str, Any] | None = None, **entries: Any) -> dict[str, Any]:
    return {"name": "e", "import_path": "a:b", "args": args or {"model": MODEL}, **entries}


def running(before: dict[str, Any], *deployments: str) -> dict[str, Any]:
    details = {name: {"required_resources": {"CPU": 2.0}} for name in deployments}
    return {"applications": {"e": {"deployed_app_config": before, "deployments": details}}}


def replaced(before: dict[str, Any], after: dict[str, Any]) -> dict[str, dict[str, float]]:
    present = running(before, "Ingress", "CacheLookup", "Embedder", "EmbedServer")
    return replaced_engines({"applications": [after]}, present)


def test_another_model_is_tried_and_shares_the_cpus_of_the_replicas() -> None:
    other = {"model": {**MODEL, "source": "hashing:16"}}
    assert replaced(application(), application(other)) == {"Embedder": {"CPU": 0}}
    colocated = {**other, "topology": "colocated"}
    assert replaced(application(), application(colocated)) == {"EmbedServer": {"CPU": 0}}


@pytest.mark.parametrize(
    "changed",
    [
        application(runtime_env={"env_vars": {"A": "1"}}),
        application(import_path="a:c"),
    ],
)
def test_other_code_or_another_environment_is_tried(changed: dict[str, Any]) -> None:
    assert [*replaced(application(), changed)] == ["Embedder"]


def test_other_resources_are_tried_with_a_gpu_of_their_own() -> None:
    gpu = [{"name": "Embedder", "ray_actor_options": {"num_cpus": 1, "num_gpus": 1}}]
    assert replaced(application(), application(deployments=gpu)) == {
        "Embedder": {"CPU": 0, "GPU": 1}
    }


def test_models_that_stay_loaded_are_not_tried() -> None:
    setting = [{"name": "Embedder", "user_config": {"max_batch_tokens": 4096}, "num_replicas": 2}]
    assert replaced(application(), application(deployments=setting)) == {}


def test_without_a_running_service_nothing_is_tried() -> None:
    config = {"applications": [application()]}
    assert replaced_engines(config, {"applications": {}}) == {}
