"""An alias with a second model: which of both answers a client, and which texts both embed."""

import logging
from collections.abc import Set
from hashlib import blake2b
from typing import NamedTuple

from serve_app.config import ApiKey
from serve_app.jobs import Job
from serve_app.results import Result
from serve_app.service.embed import EmbedService
from serve_app.service.shadow import Shadow
from serve_app.service.spaces import is_comparable

logger = logging.getLogger(__name__)

_HASH_BYTES = 8
_HASH_RANGE = 1 << 8 * _HASH_BYTES


class Requester(NamedTuple):
    """Who sent a request, as far as it decides which model answers."""

    key: ApiKey | None = None
    address: str = ""  #: of a client without a key; empty: unknown
    space: str | None = None  #: the space that the client requires; None: any

    @property
    def identity(self) -> str | None:
        """What all requests of a client have in common; None: nothing is known."""
        if self.key is not None:
            return f"key {self.key.name}"
        return f"address {self.address}" if self.address else None


class Canary(NamedTuple):
    """The second model of an alias, and the clients that it answers."""

    service: EmbedService
    share: float | None = None  #: of the clients, from 0 to 1; None: those with the `keys`
    keys: Set[str] = frozenset()  #: names


class Alias:
    """A name that stands for one model, and for a second one to some of the clients."""

    def __init__(
        self,
        name: str,
        primary: EmbedService,
        canary: Canary | None = None,
        *,
        shadow: Shadow | None = None,
        is_default: bool = False,
    ) -> None:
        """Creates an alias.

        Args:
            name: that clients request.
            primary: answers all clients that the canary doesn't answer.
            canary: None: `primary` answers all clients.
            shadow: compares another model with `primary`; None: none.
            is_default: whether embeddings without the name of a model are requested of it.
        """
        self.name = name
        self.primary = primary
        self.canary = canary
        self.shadow = shadow
        self.is_default = is_default

    @property
    def has_second(self) -> bool:
        """Whether there is a second model, so that its requests need more than a look-up."""
        return self.canary is not None or self.shadow is not None

    def select(self, requester: Requester) -> EmbedService:
        """Returns the service that answers a client: the same one for all of its requests.

        A client whose required space only one of both models has gets that one. A client whose key
        may not use the canary's model gets the primary one.
        """
        canary, (key, _, space) = self.canary, requester
        if canary is None:
            return self.primary
        second = canary.service
        if key is not None and key.models is not None and second.spec.name not in key.models:
            return self.primary
        if space is not None:
            fits_primary = is_comparable(space, self.primary.spec.space_id)
            fits_canary = is_comparable(space, second.spec.space_id)
            if fits_primary is not fits_canary:
                return second if fits_canary else self.primary
        return second if self._is_selected(requester, canary) else self.primary

    def observe(self, service: EmbedService, job: Job[Result], result: Result) -> None:
        """Passes a job that a service has answered to the shadow. Never raises or waits."""
        if self.shadow is None or service is not self.primary:
            return
        try:
            self.shadow.offer(job, result)
        except Exception:
            logger.exception("The shadow of the alias %s failed.", self.name)

    def _is_selected(self, requester: Requester, canary: Canary) -> bool:
        if canary.share is None:
            return requester.key is not None and requester.key.name in canary.keys
        identity = requester.identity
        # A larger share keeps the clients of a smaller one, and each alias has clients of its own.
        return identity is not None and _position(f"{self.name}\0{identity}") < canary.share


def _position(text: str) -> float:
    """Returns a number from 0 to 1, without 1, that is the same in every process."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
    return int.from_bytes(digest) / _HASH_RANGE
