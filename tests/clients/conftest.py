"""One application for all clients, and nothing but loopback for them to reach."""

import gc
import importlib.util
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import Overloaded
from tests.clients.served import Served, serve


def _shipped_encodings() -> str:
    """Where a package of another client keeps tiktoken's cl100k, which is else downloaded."""
    found = importlib.util.find_spec("litellm")
    assert found
    assert found.origin
    return str(Path(found.origin).parent / "litellm_core_utils" / "tokenizers")


# The clients read these when they are imported, which is after this.
os.environ |= {
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TIKTOKEN_CACHE_DIR": _shipped_encodings(),
}
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CO_API_KEY", "CO_API_URL", "VOYAGE_API_KEY"):
    os.environ.pop(name, None)


@pytest.fixture(scope="package")
def asked_for() -> Iterator[list[str]]:
    """Names of hosts that somebody wanted to reach, and couldn't."""
    names: list[str] = []
    resolve = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None):
            names.append(str(host))
            raise OSError(f"No test may reach {host!r}.")
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", loopback_only)
        yield names


@pytest.fixture(autouse=True)
def _stays_at_home(asked_for: list[str]) -> Iterator[None]:
    asked_for.clear()
    yield
    assert asked_for == []


@pytest.fixture(scope="package")
def application(asked_for: list[str]) -> Iterator[Served]:
    with serve() as served:
        yield served
    with warnings.catch_warnings():
        # Most clients can't be closed; what they leave open must not trouble other tests.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture
def served(application: Served) -> Served:
    application.lookup.error = None
    application.lookup.groups.clear()
    return application


@pytest.fixture
def overloaded(served: Served) -> Served:
    """The application, while it takes nothing."""
    served.lookup.error = Overloaded("More texts wait than fit; try later.", 7)
    return served
