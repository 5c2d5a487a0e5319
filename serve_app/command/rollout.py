"""A roll-out, read from Ray's description of the applications: progress, end, reason of a failure.

A description is the JSON of Ray's dashboard, `GET /api/serve/applications/`.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

from serve_app.command.application_status import failure_reasons

#: Ray's description of all applications.
Details = Mapping[str, Any]
#: What Ray calls an application whose configuration can be returned to.
_SERVING = ("RUNNING", "UNHEALTHY")
#: States of a replica that doesn't take requests any more.
_ENDING = ("STOPPING",)


class RolloutState(StrEnum):
    """How far a roll-out has come."""

    DEPLOYING = "deploying"
    DEPLOYED = "deployed"  #: every replica is up to date, and those before have ended
    FAILED = "failed"  #: Ray has given up
    SUPERSEDED = "superseded"  #: somebody else deployed another configuration meanwhile


class Rollout:
    """The applications of one configuration on their way to it."""

    def __init__(self, before: Details, names: Sequence[str]) -> None:
        """A roll-out that begins.

        Args:
            before: the description at its beginning.
            names: the applications of the new configuration.
        """
        self._names = names
        self._previous = {replica["replica_id"] for replica in _replicas(before)}
        self._deployed_at: dict[str, float] = {}

    def state(self, details: Details) -> RolloutState:
        """Returns how far the roll-out has come.

        The first description after the configuration was sent identifies it: a later time of
        deployment is that of another one.
        """
        applications = self._applications(details)
        for name, application in applications.items():
            deployed_at = application.get("last_deployed_time_s", 0.0)
            if deployed_at != self._deployed_at.setdefault(name, deployed_at):
                return RolloutState.SUPERSEDED
        statuses = [application["status"] for application in applications.values()]
        if "DEPLOY_FAILED" in statuses:
            return RolloutState.FAILED
        if len(statuses) == len(self._names) and all(s == "RUNNING" for s in statuses):
            return RolloutState.DEPLOYED
        return RolloutState.DEPLOYING

    def progress(self, details: Details) -> list[str]:
        """Returns a line for each deployment: its state, and its previous and new replicas."""
        lines = []
        for application in self._applications(details).values():
            deployments = application.get("deployments", {})
            if not deployments:
                lines.append("Ray builds the application")
            lines += [self._line(name, deployment) for name, deployment in deployments.items()]
        return lines or ["Ray builds the application"]

    def reasons(self, details: Details) -> str:
        """Returns Ray's messages about what failed or isn't up to date; empty if it has none."""
        texts = [failure_reasons(a) for a in self._applications(details).values()]
        return "\n".join(text for text in texts if text)

    def _applications(self, details: Details) -> dict[str, Mapping[str, Any]]:
        applications = details["applications"]
        return {name: applications[name] for name in self._names if name in applications}

    def _line(self, name: str, deployment: Mapping[str, Any]) -> str:
        replicas = deployment.get("replicas", [])
        previous = [r for r in replicas if r["replica_id"] in self._previous]
        new = [r for r in replicas if r["replica_id"] not in self._previous]
        parts = []
        if running := _count(previous, "RUNNING"):
            parts.append(f"{running} previous")
        if updating := _count(previous, "UPDATING"):
            parts.append(f"{updating} being reconfigured")
        if ending := _count(previous, *_ENDING):
            parts.append(f"{ending} draining")
        if new:
            parts.append(f"{_count(new, 'RUNNING')} of {len(new)} new")
        status = deployment["status"].lower().replace("_", " ")
        return f"{name} {status}: {', '.join(parts) or 'no replica'}"


def returnable_config(details: Details) -> dict[str, Any] | None:
    """Returns the configuration to which a failed roll-out returns; None: there is none.

    There is none if no application runs, if one is being deployed or has failed, or if one was
    started by `serve.run` without a file.
    """
    applications = [*details["applications"].values()]
    configs = [application.get("deployed_app_config") for application in applications]
    if not applications or not all(configs):
        return None
    if not all(application["status"] in _SERVING for application in applications):
        return None
    config: dict[str, Any] = {"applications": configs}
    if (capacity := details.get("target_capacity")) is not None:
        config["target_capacity"] = capacity
    return config


def _replicas(details: Details) -> Iterator[Mapping[str, Any]]:
    for application in details["applications"].values():
        for deployment in application.get("deployments", {}).values():
            yield from deployment.get("replicas", [])


def _count(replicas: Sequence[Mapping[str, Any]], *states: str) -> int:
    return sum(replica["state"] in states for replica in replicas)
