"""Ray Serve's controller, whose answers a command waits for a limited time."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from serve_app.errors import Unavailable

T = TypeVar("T")


class ServeController:
    """The controller of the cluster that this process is connected to."""

    def __init__(self, config: Mapping[str, Any], *, timeout_s: float = 60.0) -> None:
        """Connects to the controller, which is started if the cluster has none.

        Args:
            config: the content of a configuration file, with the options of the start.
            timeout_s: how long each call may take.

        Raises:
            Unavailable: the controller doesn't answer.
        """
        self._timeout_s = timeout_s
        # The first call starts HAProxy as well.
        self._actor: Any = _limit(lambda: _start(config)._controller, 2 * timeout_s)

    def details(self) -> dict[str, Any]:
        """Returns Ray's description of the applications, as the JSON of its dashboard.

        Raises:
            Unavailable: the controller doesn't answer.
        """
        details: dict[str, Any] = self._call("get_serve_instance_details")
        return details

    def apply(self, config: Mapping[str, Any]) -> None:
        """Lets the controller bring the cluster to a configuration, and returns at once.

        Raises:
            Unavailable: the controller doesn't answer.
        """
        from ray.serve.schema import ServeDeploySchema

        self._call("apply_config", ServeDeploySchema.model_validate(config))

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        call = getattr(self._actor, method)
        try:
            return ray.get(call.remote(*arguments), timeout=self._timeout_s)
        except (GetTimeoutError, RayActorError) as error:
            raise Unavailable(
                f"Ray Serve's controller doesn't answer ({type(error).__name__}); try again."
            ) from None


def _start(config: Mapping[str, Any]) -> Any:
    """Returns Ray's client of the controller."""
    from ray.exceptions import RayActorError
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)

    def start() -> Any:
        return serve_start(
            http_options=schema.http_options.model_dump(),
            grpc_options=schema.grpc_options.model_dump(),
            global_logging_config=schema.logging_config,
            controller_options=schema.controller_options,
            proxy_location=schema.proxy_location,
        )

    try:
        return start()
    except (RayActorError, TimeoutError):
        # The controller runs, and replaces a proxy that starts slowly: the second call finds it.
        return start()


def _limit(call: Callable[[], T], timeout_s: float) -> T:
    """Returns the result of a call of Ray's that has no time limit of its own.

    Raises:
        Unavailable: it takes longer.
        Exception: as raised by the call.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # is raised in the calling thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise Unavailable(f"Ray Serve's controller hasn't answered within {timeout_s:g} s.")
    return results[0]
