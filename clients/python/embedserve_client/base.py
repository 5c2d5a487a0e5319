"""What the sync and the async client share: everything but the waiting."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack
from urllib.parse import urlsplit

from embedserve_client.errors import BadAddress, EmbedError, HTTPError
from embedserve_client.fallback import Fallback
from embedserve_client.flow import Rules
from embedserve_client.local import LocalModel
from embedserve_client.retry import Retry
from embedserve_client.settings import Environment
from embedserve_client.space import Space, SpaceGuard
from embedserve_client.wire import (
    Encoding,
    Lane,
    Options,
    Overflow,
    Reply,
    Request,
    read_object,
    refusal,
)

#: With a model at hand it isn't worth the wait to try the service many times.
_RETRY = Retry()
_RETRY_WITH_FALLBACK = Retry(attempts=1)
INFO = Request("GET", "/info")
MODELS = Request("GET", "/v1/models")


class How(TypedDict, total=False):
    """How texts are embedded; all of it may be left out.

    Attributes:
        input_type: `query`, `document`, or another prompt of the model's.
        dimensions: the first of each vector, at unit length again.
        lane: `interactive` goes before `bulk`; else small requests are interactive.
        overflow: of a text that is too long `end` or `start` is left out, it is an `error`, or it
            is embedded in parts (`chunk`).
        use_cache: False: all is computed anew, and nothing is kept.
        model: another name than the client's.
        timeout_s: of each request, in place of the client's.
    """

    input_type: str | None
    dimensions: int | None
    lane: Lane | None
    overflow: Overflow
    use_cache: bool
    model: str | None
    timeout_s: float


class Settings(TypedDict, total=False):
    """What a client is given beside its address; all of it may be left out.

    Attributes:
        api_key: None: `EMBEDSERVE_API_KEY`, or none.
        model: by one of its names; None: whatever is served.
        timeout_s: of each request, its retries included (default: 60).
        retry: how often and how soon; `Retry(attempts=0)`: never.
        batch_size: texts in one request; longer lists are sent as several (default: 256).
        concurrency: requests of one call that are under way at a time (default: 4).
        encoding: `raw` bytes (default), or `base64` in JSON, where something between can't pass
            bytes on.
        fallback: `local`: computes in this process while the service is away; `none`: doesn't;
            None: what `EMBEDSERVE_FALLBACK` says, or `none`.
        local_model: for that; None: `EMBEDSERVE_LOCAL_MODEL`, or the service's default model.
        space: the space that vectors must be of; None: that of the first ones.
        allow_mixed_spaces: takes vectors of other spaces than those before, too (default: False).
    """

    api_key: str | None
    model: str | None
    timeout_s: float
    retry: Retry | None
    batch_size: int
    concurrency: int
    encoding: Encoding
    fallback: Literal["local", "none"] | None
    local_model: str | LocalModel | None
    space: str | Space | None
    allow_mixed_spaces: bool


class BaseClient:
    """Settings of a client, and how a call is cut into requests."""

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        """A client of the service at `url`; None: `EMBEDSERVE_URL`, or port 8000 of this machine.

        Raises:
            BadAddress: `url` isn't one.
            ValueError: a setting can't be.
        """
        unknown = settings.keys() - Settings.__annotations__.keys()
        if unknown:
            raise TypeError(f"A client has no setting {min(unknown)!r}.")
        environment = Environment.read()
        self.url = _checked(url or environment.url)
        self.model = settings.get("model")
        self.timeout_s = settings.get("timeout_s", 60.0)
        self._batch_size = settings.get("batch_size", 256)
        self._concurrency = settings.get("concurrency", 4)
        if not (self.timeout_s > 0 and self._batch_size >= 1 and self._concurrency >= 1):
            raise ValueError(
                "`timeout_s` must be above 0, `batch_size` and `concurrency` 1 or more."
            )
        self._api_key = settings.get("api_key") or environment.api_key
        self.fallback = _fallback(settings, environment)
        space = settings.get("space")
        self._rules = Rules(
            settings.get("retry") or (_RETRY_WITH_FALLBACK if self.fallback else _RETRY),
            settings.get("encoding", "raw"),
            SpaceGuard(
                Space.parse(space) if isinstance(space, str) else space,
                strict=not settings.get("allow_mixed_spaces", False),
            ),
            self.fallback,
        )

    @property
    def space(self) -> Space | None:
        """The space of this client's vectors; None: none came yet."""
        return self._rules.guard.expected

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}

    def _call(self, texts: Sequence[str], how: How) -> tuple[list[Sequence[str]], Options, float]:
        """The requests that a call is cut into, their options, and the time of each in seconds."""
        given: dict[str, Any] = dict(how)
        timeout_s = float(given.pop("timeout_s", self.timeout_s))
        given["model"] = given.get("model") or self.model
        size = self._batch_size
        parts = [texts[i : i + size] for i in range(0, len(texts), size)] or [texts]
        if len(parts) > 1:
            # The rest of a long list isn't a query, however short.
            given["lane"] = given.get("lane") or "bulk"
        return parts, Options(**given), timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def _fallback(settings: Settings, environment: Environment) -> Fallback | None:
    wanted = settings.get("fallback") or environment.fallback or "none"
    if wanted not in ("local", "none"):
        raise ValueError(f"A fall-back is 'local' or 'none', not {wanted!r}.")
    if wanted == "none":
        return None
    return Fallback(LocalModel.of(settings.get("local_model") or environment.local_model))


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadAddress(f"{url!r} isn't an address; write http://host:port.")
    return url.rstrip("/")


def located(error: EmbedError, first: int, part: Sequence[str]) -> EmbedError:
    """The error of one request of several: places in it count from the first of its own texts."""
    if isinstance(error, HTTPError):
        last = first + len(part) - 1
        error.args = (f"{error.args[0]} Of texts {first} to {last}, which were sent together.",)
    return error


def health_of(reply: Reply) -> dict[str, Any]:
    """What the service says of itself, also where it says that it can't embed.

    Raises:
        HTTPError, ParseError: it says something else.
    """
    if reply.status != 503 and (error := refusal(reply)):
        raise error
    return read_object(reply)


def model_names(body: Mapping[str, Any]) -> list[str]:
    """The names in what `/v1/models` answers."""
    return [str(item["id"]) for item in body.get("data", [])]
