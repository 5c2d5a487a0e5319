"""The service that `embedserve check` tests."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedserve_client.client import Client
from embedserve_client.retry import Send
from embedserve_client.settings import EnvironmentSettings
from embedserve_client.transport import Transport
from embedserve_client.wire import Request
from serve_app.types import Float32

#: How far two vectors of one text may be apart, per component, where one of them isn't cached.
_TOLERANCES = {"fp32": 1e-5}
_OTHER_TOLERANCE = 2e-3
_JSON = {"content-type": "application/json"}


class CheckFailed(Exception):
    """The service doesn't do what it should; the message says what it did."""


class CheckSkipped(Exception):
    """The check doesn't apply to this service; the message says why."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP reply. `body` is its JSON, or its text if it isn't JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any


class CheckedService:
    """Sends requests to a service, and keeps what several checks need."""

    def __init__(self, url: str | None, api_key: str | None, timeout_s: float) -> None:
        """Connects to nothing yet.

        Args:
            url: of the service; None: `EMBEDSERVE_URL`, or port 8000 on this machine.
            api_key: None: `EMBEDSERVE_API_KEY`, or none.
            timeout_s: of each request.

        Raises:
            InvalidURLError: the URL is malformed.
        """
        self.client = Client(url, api_key=api_key, fallback="none", timeout_s=timeout_s)
        self.url = self.client.base_url
        key = api_key or EnvironmentSettings.read().api_key
        self._key_headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout_s = timeout_s
        self._transport = Transport(self.url, {}, max_keepalive=1)
        #: What `/info` says of the default model for texts, from the check of that route on.
        self.info: dict[str, Any] = {}
        #: A name of that model, which stands in paths; empty if no model embeds texts.
        self.model = ""
        #: What `/info` says of each model, if the service has several.
        self.models: list[dict[str, Any]] = []
        #: The text of all dialects, so that each must return the same vector.
        self.text = new_text()

    def get(self, path: str) -> Reply:
        """Sends a GET request; raises like `Transport.send`."""
        return self._send(Request("GET", path, self._key_headers))

    def post(
        self, path: str, body: Mapping[str, Any], *, key_headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Sends a JSON body; raises like `Transport.send`.

        Args:
            path: of the route.
            body: the content.
            key_headers: replace the header of the API key.
        """
        headers = {**_JSON, **(self._key_headers if key_headers is None else key_headers)}
        return self._send(Request("POST", path, headers, json.dumps(body).encode()))

    def check_vector(self, vector: Any, expected: Float32) -> None:
        """Compares the direction of two vectors of one text.

        Raises:
            CheckFailed: it differs by more than the precision explains.
        """
        values = np.asarray(vector, np.float32)
        if values.shape != expected.shape:
            raise CheckFailed(f"a vector of shape {values.shape} in place of {expected.shape}")
        distance = float(np.abs(unit(values) - unit(expected)).max())
        tolerance = _TOLERANCES.get(self.info.get("precision", ""), _OTHER_TOLERANCE)
        if not distance <= tolerance:  # NaN is never within it
            raise CheckFailed(f"the vector differs from the client's by {distance:.1g}")

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()
        self._transport.close()

    def _send(self, request: Request) -> Reply:
        response = self._transport.send(Send(request, self._timeout_s))
        try:
            body = json.loads(response.content)
        except ValueError:
            body = response.content.decode("utf-8", "replace")
        return Reply(response.status, response.headers, body)


def new_text() -> str:
    """Returns a text that nobody has embedded before."""
    return f"A random text of embedserve check, {uuid.uuid4()}."


def unit(vectors: Float32) -> Float32:
    """Returns vectors of shape (…, dim) at unit length."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)
