"""New replicas start before those that they replace stop, if the cluster has room for all."""

from typing import Any

from serve_app.command.surge import with_surge


def config(**embedder: Any) -> dict[str, Any]:
    deployments = [{"name": "Embedder", **embedder}] if embedder else []
    return {"applications": [{"name": "e", "import_path": "a:b", "deployments": deployments}]}


def running(cpus: float = 2.0, **resources: float) -> dict[str, Any]:
    required: dict[str, dict[str, float]] = {
        "Ingress": {"CPU": 0},
        "CacheLookup": {},
        "Embedder": {"CPU": cpus, **resources},
    }
    deployments = {name: {"required_resources": r} for name, r in required.items()}
    return {"applications": {"e": {"deployments": deployments}}}


def surges(result: dict[str, Any]) -> dict[str, int | None]:
    entries = result["applications"][0]["deployments"]
    return {entry["name"]: entry.get("max_surge_percent") for entry in entries}


ALL = {"Ingress": 100, "CacheLookup": 100, "Embedder": 100}


def test_all_deployments_surge_where_one_machine_has_room_for_a_replica() -> None:
    result, without_room = with_surge(config(), running(), {"a": {"CPU": 1.0}, "b": {"CPU": 2.0}})
    assert surges(result) == ALL
    assert without_room == []


def test_none_surges_if_a_replica_fits_on_no_machine() -> None:
    original = config(num_replicas=1)
    result, without_room = with_surge(original, running(), {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}})
    assert result == original
    assert without_room == ["Embedder"]


def test_resources_that_the_file_sets_count_instead_of_the_present_ones() -> None:
    smaller = config(ray_actor_options={"num_cpus": 1})
    assert with_surge(smaller, running(cpus=2), {"a": {"CPU": 1.0}})[1] == []
    larger = config(ray_actor_options={"num_cpus": 2})
    assert with_surge(larger, running(cpus=1), {"a": {"CPU": 1.0}})[1] == ["Embedder"]


def test_gpus_and_custom_resources_count() -> None:
    gpu = config(ray_actor_options={"num_cpus": 0, "num_gpus": 1})
    assert with_surge(gpu, running(GPU=1), {"a": {"CPU": 8.0}})[1] == ["Embedder"]
    labeled = config(ray_actor_options={"num_cpus": 0, "resources": {"a100": 1}})
    assert with_surge(labeled, running(), {"a": {"CPU": 8.0}})[1] == ["Embedder"]
    assert with_surge(labeled, running(), {"a": {"CPU": 8.0, "a100": 1.0}})[1] == []


def test_a_setting_of_the_file_remains() -> None:
    result, _ = with_surge(config(max_surge_percent=0), running(), {"a": {"CPU": 2.0}})
    assert surges(result) == ALL | {"Embedder": 0}


def test_deployments_that_do_not_run_yet_need_no_room_for_a_second_replica() -> None:
    result, without_room = with_surge(config(), {"applications": {}}, {"a": {"CPU": 0.0}})
    assert surges(result) == ALL
    assert without_room == []
