"""The one place where secrets are read from the environment."""

import os

from serve_app.errors import ConfigurationError


def read_secret(name: str, setting: str) -> str:
    """The value of an environment variable that a setting names.

    Raises:
        ConfigurationError: the variable isn't set. The message holds names only.
    """
    value = os.environ.get(name)
    if value is None:
        raise ConfigurationError(
            f"`{setting}` names {name}, which isn't set where the replica runs. Set it for Ray on "
            "each machine, or in the deployment's `ray_actor_options.runtime_env`."
        )
    return value
