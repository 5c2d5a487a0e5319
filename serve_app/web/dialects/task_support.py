"""The check that a model supports the task of a route."""

from serve_app.errors import UnsupportedOperation
from serve_app.models import ModelSpec
from serve_app.tasks import Task


def require_task(spec: ModelSpec, task: Task, message: str) -> None:
    """Checks that a model supports a task.

    Raises:
        UnsupportedOperation: it doesn't; with the message.
    """
    if task not in spec.tasks:
        raise UnsupportedOperation(message, "model")
