"""The only place that reads secrets from the environment."""

import os

from serve_app.errors import ConfigurationError


def read_secret(name: str, setting: str) -> str:
    """Returns the value of the environment variable `name`, which `setting` refers to.

    Raises:
        ConfigurationError: the variable isn't set. The message contains names only.
    """
    value = os.environ.get(name)
    if value is None:
        raise ConfigurationError(
            f"`{setting}` names the environment variable {name}, which isn't set where the replica "
            "runs. Set it for Ray on each machine."
        )
    return value
