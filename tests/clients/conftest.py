"""The application that all client tests share, without access to other hosts."""

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
from tests.clients.app_server import AppServer, run_app_server
from tests.clients.kinds_server import KindsServer, run_kinds_server


def bundled_encodings() -> str:
    """Returns the directory of tiktoken's cl100k inside `litellm`; tiktoken would download it."""
    spec = importlib.util.find_spec("litellm")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")


# The client libraries read these when they are imported, later than this module.
os.environ |= {
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TIKTOKEN_CACHE_DIR": bundled_encodings(),
}
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CO_API_KEY", "CO_API_URL", "VOYAGE_API_KEY"):
    os.environ.pop(name, None)


@pytest.fixture(scope="package")
def blocked_hosts() -> Iterator[list[str]]:
    """Names of other hosts that a client tried to reach; each lookup fails."""
    names: list[str] = []
    getaddrinfo = socket.getaddrinfo

    def loopback_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None):
            names.append(str(host))
            raise OSError(f"Client tests use loopback only, not {host!r}.")
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", loopback_only)
        yield names
    with warnings.catch_warnings():
        # Most client libraries have no `close`: collect their sockets before other tests run.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _reaches_no_other_host(blocked_hosts: list[str]) -> Iterator[None]:
    blocked_hosts.clear()
    yield
    assert blocked_hosts == []


@pytest.fixture(scope="package")
def shared_server(blocked_hosts: list[str]) -> Iterator[AppServer]:
    with run_app_server() as server:
        yield server


@pytest.fixture(scope="package")
def kinds(
    blocked_hosts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KindsServer]:
    """A service with a tiny model of each kind."""
    with run_kinds_server(tmp_path_factory.mktemp("kinds")) as server:
        yield server


@pytest.fixture(scope="package")
def reranker(
    blocked_hosts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KindsServer]:
    """A service with a reranker only."""
    with run_kinds_server(tmp_path_factory.mktemp("reranker"), ["reranker"]) as server:
        yield server


@pytest.fixture(scope="package")
def classifier(
    blocked_hosts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KindsServer]:
    """A service with a classifier only."""
    with run_kinds_server(tmp_path_factory.mktemp("classifier"), ["classifier"]) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


@pytest.fixture
def server(shared_server: AppServer) -> AppServer:
    shared_server.backend.error = None
    shared_server.backend.groups.clear()
    return shared_server


@pytest.fixture
def overloaded(server: AppServer) -> AppServer:
    """The application while it rejects every request with 429."""
    server.backend.error = Overloaded("More texts wait than fit; try later.", 7)
    return server
