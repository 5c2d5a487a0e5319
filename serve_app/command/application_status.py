"""The status of an application in Ray Serve, as text for people.

An application is a mapping with `status`, `message` and `deployments`: the JSON of Ray's dashboard,
or `dataclasses.asdict` of an item of `serve.status().applications`.
"""

import re
from collections.abc import Mapping
from typing import Any

from serve_app.config import CACHE_SERVER

_EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w+: ", re.MULTILINE)


def failure_reasons(application: Mapping[str, Any]) -> str:
    """Returns Ray's messages about a failed application, without stack traces."""
    components = {"The application": application, **application.get("deployments", {})}
    return "\n".join(
        f"{name}: {_exception_text(component['message'])}"
        for name, component in components.items()
        if component.get("status") not in ("HEALTHY", "RUNNING") and component.get("message")
    )


def describe_replicas(states: Mapping[str, Mapping[str, int]]) -> str:
    """Returns the replicas that run, of all replicas, by deployment.

    Args:
        states: deployment → state of a replica in Ray's terms (`RUNNING`, …) → number.
    """
    return "replicas: " + ", ".join(
        f"{name} {counts.get('RUNNING', 0)}/{max(1, sum(counts.values()))}"
        for name, counts in states.items()
        if name != CACHE_SERVER  # most services never need it
    )


def _exception_text(message: str) -> str:
    """Returns the last exception of a stack trace, or the message if it contains none."""
    starts = [match.start() for match in _EXCEPTION.finditer(message)]
    return message[starts[-1] if starts else 0 :].strip()
