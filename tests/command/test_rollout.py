"""What a roll-out's state, progress and reasons are, from documents of Ray's dashboard."""

from typing import Any

import pytest

from serve_app.command.rollout import Rollout, RolloutState, returnable_config

CONFIG = {"name": "e", "import_path": "serve_app.app:build", "args": {"topology": "colocated"}}


def replica(replica_id: str, state: str = "RUNNING") -> dict[str, Any]:
    return {"replica_id": replica_id, "state": state}


def details(*replicas: dict[str, Any], status: str = "RUNNING", at: float = 1.0) -> dict[str, Any]:
    entry = {"status": "HEALTHY", "message": "", "replicas": [*replicas]}
    application = {
        "status": status,
        "message": "",
        "last_deployed_time_s": at,
        "deployed_app_config": CONFIG,
        "deployments": {"EmbedServer": entry},
    }
    return {"applications": {"e": application}, "target_capacity": None}


BEFORE = details(replica("a"), replica("b"))


@pytest.fixture
def rollout() -> Rollout:
    return Rollout(BEFORE, ["e"])


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("DEPLOYING", RolloutState.DEPLOYING),
        ("NOT_STARTED", RolloutState.DEPLOYING),
        ("UNHEALTHY", RolloutState.DEPLOYING),  # Ray replaces a replica that fails meanwhile
        ("DEPLOY_FAILED", RolloutState.FAILED),
        ("RUNNING", RolloutState.DEPLOYED),
    ],
)
def test_the_state_follows_the_application(
    rollout: Rollout, status: str, state: RolloutState
) -> None:
    assert rollout.state(details(status=status, at=2.0)) is state


def test_an_application_that_ray_does_not_know_yet_is_being_deployed(rollout: Rollout) -> None:
    assert rollout.state({"applications": {}}) is RolloutState.DEPLOYING
    assert rollout.progress({"applications": {}}) == ["Ray builds the application"]


def test_another_deployment_meanwhile_is_noticed(rollout: Rollout) -> None:
    assert rollout.state(details(status="DEPLOYING", at=2.0)) is RolloutState.DEPLOYING
    assert rollout.state(details(status="RUNNING", at=3.0)) is RolloutState.SUPERSEDED


def test_progress_tells_previous_replicas_from_new_ones(rollout: Rollout) -> None:
    now = details(
        replica("a"),
        replica("b", "STOPPING"),
        replica("c"),
        replica("d", "STARTING"),
        status="DEPLOYING",
    )
    now["applications"]["e"]["deployments"]["EmbedServer"]["status"] = "UPDATING"
    (line,) = rollout.progress(now)
    assert line == "EmbedServer updating: 1 previous, 1 draining, 1 of 2 new"


def test_progress_of_replicas_that_apply_a_setting(rollout: Rollout) -> None:
    (line,) = rollout.progress(details(replica("a", "UPDATING"), replica("b")))
    assert line == "EmbedServer healthy: 1 previous, 1 being reconfigured"


def test_progress_before_ray_has_built_the_application(rollout: Rollout) -> None:
    now = details(status="DEPLOYING")
    now["applications"]["e"]["deployments"] = {}
    assert rollout.progress(now) == ["Ray builds the application"]


def test_the_reasons_are_rays_messages_without_stack_traces(rollout: Rollout) -> None:
    now = details(status="DEPLOY_FAILED")
    now["applications"]["e"]["message"] = "Failed to update the deployments ['EmbedServer']."
    now["applications"]["e"]["deployments"]["EmbedServer"] |= {
        "status": "DEPLOY_FAILED",
        "message": 'Error:\nTraceback (most recent call last):\n  File "x.py", line 1\n'
        "serve_app.errors.ConfigurationError: `device: cuda` needs a GPU.",
    }
    assert rollout.reasons(now) == (
        "The application: Failed to update the deployments ['EmbedServer'].\n"
        "EmbedServer: serve_app.errors.ConfigurationError: `device: cuda` needs a GPU."
    )


@pytest.mark.parametrize("status", ["RUNNING", "UNHEALTHY"])
def test_a_configuration_that_serves_can_be_returned_to(status: str) -> None:
    assert returnable_config(details(status=status)) == {"applications": [CONFIG]}


def test_the_target_capacity_is_returned_to_as_well() -> None:
    capacity = {**details(), "target_capacity": 50.0}
    assert returnable_config(capacity) == {"applications": [CONFIG], "target_capacity": 50.0}


@pytest.mark.parametrize("status", ["DEPLOYING", "DEPLOY_FAILED", "DELETING"])
def test_a_configuration_that_never_served_is_not_returned_to(status: str) -> None:
    assert returnable_config(details(status=status)) is None


def test_without_an_application_or_its_file_there_is_nothing_to_return_to() -> None:
    assert returnable_config({"applications": {}}) is None
    from_code = details()
    from_code["applications"]["e"]["deployed_app_config"] = None
    assert returnable_config(from_code) is None
