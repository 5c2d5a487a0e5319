"""The engines of a replica, on the CPUs or the GPU that Ray assigned to it."""

from collections.abc import Callable, Sequence, Set

import ray
from ray import serve

from serve_app.config import TOKEN_POLICY, AppConfig, PolicySettings
from serve_app.engines.affinity import available_cpus, choose_cpus
from serve_app.engines.base import Engine
from serve_app.engines.cpu_quota import read_cpu_quota
from serve_app.engines.cpu_topology import CpuTopology
from serve_app.errors import ConfigurationError
from serve_app.meter import Meter
from serve_app.model_prep.engine_selection import EngineSelection, check_space, load_engine
from serve_app.scheduler.engine_pool import EnginePool
from serve_app.scheduler.startup_timer import StartupTimer
from serve_app.service.composition import create_engine_pool


class ReplicaCpus:
    """The CPUs of a replica: a block for each replica of a node, by its rank there.

    Ray ranks the replicas of each deployment by themselves, so the first replicas of all of them
    get the first blocks, then the second ones. Replicas on GPUs may use any CPU.
    """

    def __init__(self, config: AppConfig, deployment: str) -> None:
        """Reads what Ray assigned to this replica.

        Args:
            config: the application's configuration.
            deployment: the name that the models of this replica give.
        """
        pinned = [
            name
            for name, (model, *_) in config.model_deployments.items()
            if not model.is_remote and config.engine_settings(model).device == "cpu"
        ]
        self._deployments = pinned
        self._index = pinned.index(deployment) if deployment in pinned else None
        self.count = assigned_cpus()
        self._all = available_cpus()  # before any thread is pinned
        self._topology = CpuTopology.read(self._all)
        # The CPUs belong to other containers as well if this one may not use all of their time.
        self._is_shared = read_cpu_quota() < len(self._all)

    def of_rank(self, local_rank: int) -> frozenset[int]:
        """Returns the CPUs of the replica with this rank on its node."""
        if self._index is None or self._is_shared:
            return self._all
        block = local_rank * len(self._deployments) + self._index
        return choose_cpus(self._all, self.count, block, self._topology)


def load_replica_engines(
    config: AppConfig,
    selections: Sequence[EngineSelection],
    cpus: ReplicaCpus,
    meter: Meter,
    *,
    load: Callable[..., Engine] = load_engine,
) -> EnginePool:
    """Loads the engines of a replica; see `load_engines`.

    Raises:
        ConfigurationError: the settings of the autoscaling policy aren't valid.
    """
    _check_scaling_settings()
    usable = cpus.of_rank(serve.get_replica_context().rank.local_rank)
    return load_engines(config, selections, cpus.count, usable, meter, load=load)


def load_engines(
    config: AppConfig,
    selections: Sequence[EngineSelection],
    threads: int,
    cpus: Set[int],
    meter: Meter,
    *,
    load: Callable[..., Engine] = load_engine,
) -> EnginePool:
    """Loads the selected engines and warms them up, in a process that Ray started.

    Args:
        config: the application's configuration.
        selections: the models and their engines, for one device; those that providers run are left
            out.
        threads: CPU threads for the models.
        cpus: the CPUs that these threads may use.
        meter: counts batches.
        load: returns the engine for a selection and `threads`.

    Raises:
        ConfigurationError: an engine can't run on the device that Ray assigned.
        SpaceMismatch: the model files of this node differ from those of the application.
    """
    local = [selection for selection in selections if not selection.spec.is_remote]
    startup = StartupTimer()
    with startup.step("check"):
        for selection in local:
            check_space(selection)
    if local:
        _check_device(local[0].device, has_gpu=bool(ray.get_gpu_ids()))
    return create_engine_pool(
        config,
        selections,
        threads=threads,
        cpus=cpus,
        meter=meter,
        load=load,
        startup=startup,
        # A number of GPUs that isn't a fraction is one of whole GPUs.
        gpu_share=_assigned_resources().get("GPU", 0.0) % 1 or None,
    )


def _check_scaling_settings() -> None:
    """Checks `policy_kwargs` of this deployment.

    Where the policy itself runs, in Ray's controller, an error would end the loop that controls all
    deployments. The error of a replica fails the deployment, with its message.

    Raises:
        ConfigurationError: a setting is unknown or not valid.
    """
    context = serve.get_replica_context()
    scaling = context._deployment_config.autoscaling_config  # Ray has no public API for it
    if scaling is not None and scaling.policy.policy_function == TOKEN_POLICY:
        location = f"{context.deployment}: autoscaling_config.policy.policy_kwargs"
        PolicySettings.parse(scaling.policy.policy_kwargs, location)


def assigned_cpus() -> int:
    """Returns the number of CPUs that Ray assigned to this process, at least 1."""
    return max(1, int(_assigned_resources().get("CPU", 1)))


def _assigned_resources() -> dict[str, float]:
    resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
    return resources


def _check_device(device: str, *, has_gpu: bool) -> None:
    """Checks that Ray assigned the configured device to this replica.

    Raises:
        ConfigurationError: a GPU is configured but not assigned, or assigned but not used.
    """
    if device == "cuda" and not has_gpu:
        raise ConfigurationError(
            "`device: cuda` needs a GPU: set `num_gpus` in the deployment's `ray_actor_options`."
        )
    if device == "cpu" and has_gpu:
        raise ConfigurationError(
            "Ray assigned a GPU to this replica, but `device: cpu` doesn't use it: set `device: "
            "cuda` in the application's `args`, or remove `num_gpus` from the deployment."
        )
