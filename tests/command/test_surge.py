"""New replicas start before those that they replace stop, if the cluster has room for all."""

from typing import Any

from serve_app.command.surge import with_surge


def config(topology: str = "colocated", **server: Any) -> dict[str, Any]:
    deployments = [{"name": "EmbedServer", **server}] if server else []
    application = {"name": "e", "import_path": "a:b", "deployments": deployments}
    return {"applications": [{**application, "args": {"topology": topology}}]}


def running(cpus: float = 2.0, **resources: float) -> dict[str, Any]:
    deployments = {"EmbedServer": {"required_resources": {"CPU": cpus, **resources}}}
    return {"applications": {"e": {"deployments": deployments}}}


def surges(result: dict[str, Any]) -> dict[str, int | None]:
    entries = result["applications"][0]["deployments"]
    return {entry["name"]: entry.get("max_surge_percent") for entry in entries}


SURGE = {"EmbedServer": 100}


def test_replicas_surge_where_one_machine_has_room_for_another_one() -> None:
    result, without_room = with_surge(config(), running(), {"a": {"CPU": 1.0}, "b": {"CPU": 2.0}})
    assert surges(result) == SURGE
    assert without_room == []


def test_no_replica_surges_if_none_fits_on_a_machine() -> None:
    original = config(num_replicas=1)
    result, without_room = with_surge(original, running(), {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}})
    assert result == original
    assert without_room == ["EmbedServer"]


def test_resources_that_the_file_sets_count_instead_of_the_present_ones() -> None:
    smaller = config(ray_actor_options={"num_cpus": 1})
    assert with_surge(smaller, running(cpus=2), {"a": {"CPU": 1.0}})[1] == []
    larger = config(ray_actor_options={"num_cpus": 2})
    assert with_surge(larger, running(cpus=1), {"a": {"CPU": 1.0}})[1] == ["EmbedServer"]


def test_gpus_and_custom_resources_count() -> None:
    gpu = config(ray_actor_options={"num_cpus": 0, "num_gpus": 1})
    assert with_surge(gpu, running(GPU=1), {"a": {"CPU": 8.0}})[1] == ["EmbedServer"]
    labeled = config(ray_actor_options={"num_cpus": 0, "resources": {"a100": 1}})
    assert with_surge(labeled, running(), {"a": {"CPU": 8.0}})[1] == ["EmbedServer"]
    assert with_surge(labeled, running(), {"a": {"CPU": 8.0, "a100": 1.0}})[1] == []


def test_a_setting_of_the_file_remains() -> None:
    result, _ = with_surge(config(max_surge_percent=0), running(), {"a": {"CPU": 2.0}})
    assert surges(result) == {"EmbedServer": 0}


def test_deployments_that_do_not_run_yet_need_no_room_for_a_second_replica() -> None:
    result, without_room = with_surge(config(), {"applications": {}}, {"a": {"CPU": 0.0}})
    assert surges(result) == SURGE
    assert without_room == []


def test_separate_deployments_are_replaced_together() -> None:
    original = config("separate", num_replicas=1)
    assert with_surge(original, running(), {"a": {"CPU": 2.0}}) == (original, [])
