import logging
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.serve import Application
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve.schema import ServeApplicationSchema

from serve_app import app
from serve_app.config import AppConfig, CacheConfig, ModelConfig
from serve_app.deployments.providers import Providers
from serve_app.model_prep.engine_selection import select_engines

HASHING = ModelConfig(name="words", source="hashing:64")
OTHERS = (
    ModelConfig(name="others", source="hashing:32"),
    ModelConfig(name="alone", source="hashing:16", deployment="Alone"),
)


def bound(application: Application) -> Any:
    """Returns the deployment with its constructor arguments, which Ray has no public API for."""
    return application._bound_deployment


def test_replicas_get_the_selected_engine_and_the_log_lists_rejected_engines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = AppConfig(model=HASHING)
    (selection,) = select_engines(config)
    selection = replace(selection, rejected=("x at bf16: no",))
    monkeypatch.setattr(app, "select_engines", lambda config: (selection,))
    with caplog.at_level(logging.INFO):
        ingress = bound(app.build(config))
    assert caplog.messages == [
        "words: rejected engine: x at bf16: no",
        "words: selected engine: hashing at fp32.",
    ]
    ingress_config, selections, lookup, embedders = ingress.init_args
    assert (ingress_config, selections) == (config, (selection,))
    assert bound(lookup).init_args == (config, (selection,), embedders)
    assert bound(embedders["Embedder"]).init_args == (config, (selection,))


def test_each_deployment_that_models_name_has_its_models() -> None:
    config = AppConfig(models=(HASHING, *OTHERS))
    _, selections, _, embedders = bound(app.build(config)).init_args
    assert [selection.spec.name for selection in selections] == ["words", "others", "alone"]
    models = {
        bound(embedder).name: [s.spec.name for s in bound(embedder).init_args[1]]
        for embedder in embedders.values()
    }
    assert models == {"Embedder": ["words", "others"], "Alone": ["alone"]}
    assert embedders.keys() == models.keys()


@pytest.mark.parametrize(
    ("machine_cpus", "replica_cpus"), [(1, 0.5), (2, 1), (3, 1), (4, 2), (64, 2)]
)
def test_a_replica_of_each_deployment_fits_onto_the_machine(
    machine_cpus: float, replica_cpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": machine_cpus})
    config = AppConfig(models=(HASHING, OTHERS[1]))
    _, _, _, embedders = bound(app.build(config)).init_args
    for embedder in embedders.values():
        assert bound(embedder).ray_actor_options["num_cpus"] == replica_cpus


def test_models_of_providers_get_a_deployment_without_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
    remote = ModelConfig(name="remote", source="openai:text-embedding-3-small")
    _, _, _, embedders = bound(app.build(AppConfig(models=(remote, HASHING)))).init_args
    cpus = {name: bound(e).ray_actor_options["num_cpus"] for name, e in embedders.items()}
    assert cpus == {"Embedder": 2, "Providers": 0}
    providers = bound(embedders["Providers"])
    assert providers.func_or_class is Providers
    assert [selection.spec.name for selection in providers.init_args[1]] == ["remote"]
    _, _, _, embedders = bound(app.build(AppConfig(model=remote))).init_args
    assert embedders.keys() == {"Providers"}


def test_with_colocated_topology_there_is_one_deployment() -> None:
    config = AppConfig(
        models=(HASHING, OTHERS[0]), topology="colocated", cache=CacheConfig(dtype="float16")
    )
    server = bound(app.build(config))
    assert server.name == "EmbedServer"
    server_config, (selection, other) = server.init_args
    assert (server_config, other.spec.name) == (config, "others")
    assert (selection.engine, selection.precision) == ("hashing", "fp32")
    assert selection.cached_spec.space_id == f"{selection.spec.space_id}+float16"


@pytest.mark.parametrize("topology", ["separate", "colocated"])
def test_an_embedded_cache_server_is_that_of_the_head(topology: Any) -> None:
    config = AppConfig(model=HASHING, topology=topology)
    ingress = bound(app.build(config))
    server = bound(ingress.init_kwargs["cache_server"])
    assert (server.name, server.init_args) == ("CacheServer", (config,))
    assert server.ray_actor_options == {
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
    }
    scaling = server._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 1)
    if topology == "separate":
        lookup = bound(ingress.init_args[2])
        assert lookup.init_kwargs == ingress.init_kwargs


@pytest.mark.parametrize("url", ["none", "redis://cache"])
def test_another_cache_server_needs_no_deployment(url: str) -> None:
    cache = CacheConfig.model_validate({"url": url})
    ingress = bound(app.build(AppConfig(model=HASHING, cache=cache)))
    assert ingress.init_kwargs == {"cache_server": None}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"num_cpus": 2}),
        # Ray replaces the options of the application by those of the file, and doesn't merge them.
        ({"ray_actor_options": {"num_gpus": 0.25}}, {"num_cpus": 1, "num_gpus": 0.25}),
        (
            {
                "ray_actor_options": {
                    "num_cpus": 4,
                    "num_gpus": 1,
                    "accelerator_type": "L4",
                    "resources": {"local_disk": 1},
                    "label_selector": {"ray.io/market-type": "!spot"},
                    "fallback_strategy": [{"label_selector": {"zone": "b"}}],
                }
            },
            {
                "num_cpus": 4,
                "num_gpus": 1,
                "accelerator_type": "L4",
                "resources": {"local_disk": 1},
                "label_selector": {"ray.io/market-type": "!spot"},
                "fallback_strategy": [{"label_selector": {"zone": "b"}}],
            },
        ),
        ({"max_replicas_per_node": 2}, {"num_cpus": 2}),
        (
            {
                "ray_actor_options": {"num_cpus": 2},
                "placement_group_bundles": [{"CPU": 2}, {"memory": 1}],
                "placement_group_strategy": "STRICT_PACK",
                "placement_group_bundle_label_selector": [{"zone": "a"}],
            },
            {"num_cpus": 2},
        ),
    ],
    ids=["default", "fraction of a GPU", "all options", "per node", "placement group"],
)
def test_replicas_are_placed_as_the_file_says(
    options: dict[str, Any], expected: dict[str, Any]
) -> None:
    _, _, _, embedders = bound(app.build(AppConfig(model=HASHING))).init_args
    embedder = bound(embedders["Embedder"])
    # Ray has no public API for the options of replicas.
    info = DeploymentInfo(embedder._deployment_config, embedder._replica_config, 0, "")
    file = ServeApplicationSchema.model_validate(
        {"import_path": "serve_app.app:build", "deployments": [{"name": "Embedder", **options}]}
    )
    placed = override_deployment_info({"Embedder": info}, file)["Embedder"].replica_config
    actor_options = dict(placed.ray_actor_options)
    assert actor_options.pop("runtime_env", {}) == {}
    assert actor_options == expected
    for name, value in options.items():
        if name == "placement_group_bundle_label_selector":
            value = value * 2  # for each bundle
        if name != "ray_actor_options":
            assert getattr(placed, name) == value
