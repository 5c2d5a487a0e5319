"""A trial of a configuration's models on the cluster, before replicas that run are replaced."""

from collections.abc import Callable, Mapping
from typing import Any

from serve_app.command.replica_resources import replica_resources
from serve_app.command.rollout import Details
from serve_app.config import AppConfig
from serve_app.errors import ConfigurationError, EmbedServeError

#: Loads the engines of a deployment: application, its name, a replica's resources, time limit.
EngineTrial = Callable[[Mapping[str, Any], str, Mapping[str, float], float], None]

#: What a replica loads depends on these entries of an application.
_DECIDING = ("import_path", "args", "runtime_env")


def replaced_engines(config: Mapping[str, Any], running: Details) -> dict[str, dict[str, float]]:
    """Returns the deployments whose engines a roll-out loads anew, with the resources of a trial.

    These are those of a replica without its CPUs, which the replicas that run may all have: a trial
    is short, and can share them.

    Args:
        config: the content of a configuration file.
        running: Ray's description of the applications that run.
    """
    application = config["applications"][0]
    present = running["applications"].get(application["name"], {})
    before = present.get("deployed_app_config") or {}
    args = AppConfig.parse(application.get("args"))
    names = ("EmbedServer",) if args.topology == "colocated" else args.engine_deployments
    is_same = all(application.get(entry) == before.get(entry) for entry in _DECIDING)
    replaced = {}
    for name in names:
        if details := present.get("deployments", {}).get(name):
            options = _actor_options(application, name)
            if not is_same or options != _actor_options(before, name):
                replaced[name] = replica_resources(options, details) | {"CPU": 0}
    return replaced


def _actor_options(application: Mapping[str, Any], deployment: str) -> dict[str, Any]:
    for entry in application.get("deployments", []):
        if entry["name"] == deployment:
            options: dict[str, Any] = entry.get("ray_actor_options") or {}
            return options
    return {}


def try_engines(
    application: Mapping[str, Any],
    deployment: str,
    resources: Mapping[str, float],
    timeout_s: float,
) -> None:
    """Loads the engines of a deployment as a task of Ray; call `connect` before.

    Args:
        application: an entry of `applications` in a configuration file.
        deployment: the name of one that runs models.
        resources: those of the task, by Ray's names.
        timeout_s: how long it may take.

    Raises:
        ConfigurationError: an engine can't be loaded, or not within the time; the message says why.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    from serve_app.deployments.engine_trial import load_once

    others = {name: n for name, n in resources.items() if name not in ("CPU", "GPU", "memory")}
    task = ray.remote(
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        memory=resources.get("memory", 0),
        resources=others,
        runtime_env=application.get("runtime_env") or {},
        max_retries=0,
        max_calls=1,  # the process ends, and gives the memory of the models back
    )(load_once)
    reference = task.remote(application.get("args") or {}, deployment)
    try:
        ray.get(reference, timeout=timeout_s)
    except GetTimeoutError:
        ray.cancel(reference, force=True)
        raise ConfigurationError(
            f"The models of {deployment} were not loaded within {timeout_s:g} s, on a machine with "
            f"free resources {dict(resources)}."
        ) from None
    except RayTaskError as error:
        cause = error.cause
        is_ours = isinstance(cause, EmbedServeError)
        reason = str(cause) if is_ours else f"{type(cause).__name__}: {cause}"
        raise ConfigurationError(f"The models of {deployment} can't be loaded: {reason}") from None
    except RayError as error:  # the process ended: too little memory, a signal, no environment
        raise ConfigurationError(
            f"The models of {deployment} can't be loaded: {type(error).__name__}: {error}"
        ) from None
