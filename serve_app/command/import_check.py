"""Whether the code of an application can be imported here, before Ray tries it on the cluster."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from serve_app.errors import ConfigurationError


def check_import(application: Mapping[str, Any]) -> None:
    """Imports the builder that `import_path` names, as Ray will.

    Ray repeats a failed import three times, each in a new process, before it reports the error. An
    application with a `runtime_env` may bring code that this machine doesn't have: Ray checks it.

    Args:
        application: an entry of `applications` in a configuration file.

    Raises:
        ConfigurationError: the module can't be imported, or has no such attribute.
    """
    if application.get("runtime_env"):
        return
    path = application["import_path"]
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if os.getcwd() not in sys.path:  # `serve run` finds modules there
        sys.path.append(os.getcwd())
    try:
        getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module's own code may raise any
        raise ConfigurationError(
            f"`import_path: {path}` can't be imported ({type(error).__name__}: {error}). Correct "
            "the path, or install the code on every machine of the cluster."
        ) from None
