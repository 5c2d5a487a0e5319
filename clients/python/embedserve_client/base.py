"""What `Client` and `AsyncClient` share: options, the split into requests, response parsing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, Literal, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

from embedserve_client.classify import (
    ClassifyParams,
    LabelScore,
    classify_request,
    parse_labels,
)
from embedserve_client.errors import EmbedError, HTTPError, InvalidURLError
from embedserve_client.fallback import Fallback
from embedserve_client.flow import CallContext, Flow, embed, request
from embedserve_client.images import ImageInput, image_inputs, split_images
from embedserve_client.local_model import LocalModel
from embedserve_client.rerank import (
    RerankParams,
    RerankResult,
    merge_rankings,
    parse_ranking,
    rerank_request,
)
from embedserve_client.retry import RetryPolicy
from embedserve_client.settings import EnvironmentSettings
from embedserve_client.space import Space, SpaceGuard
from embedserve_client.sparse import (
    SparseParams,
    SparseTruncation,
    SparseVector,
    parse_sparse_vectors,
    sparse_request,
)
from embedserve_client.vectors import Vectors, concatenate
from embedserve_client.wire import (
    EmbedParams,
    EncodingFormat,
    Lane,
    Request,
    Response,
    Truncation,
    embedding_request,
    parse_object,
    parse_space,
    parse_vectors,
    status_error,
)

B = TypeVar("B", bound=Sequence[Any])
R = TypeVar("R")
T = TypeVar("T")

MODELS_REQUEST = Request("GET", "/v1/models")
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_BATCH_SIZE = 256
DEFAULT_CONCURRENCY = 4


class EmbedOptions(TypedDict, total=False):
    """Options of an embedding call; all are optional.

    Attributes:
        input_type: `query`, `document`, or the name of another prompt of the model.
        dimensions: the number of leading dimensions to keep; vectors are normalized again.
        lane: the priority, `interactive` or `bulk`; by default, small requests are interactive.
        truncation: what to do with a text beyond the token limit: cut its `end` or `start`, fail
            with an `error`, or embed it in parts (`chunk`). Default: `end`.
        use_cache: False: bypasses the cache, for reading and for writing.
        model: overrides the client's model.
        timeout_s: overrides the client's timeout of each request.
    """

    input_type: str | None
    dimensions: int | None
    lane: Lane | None
    truncation: Truncation
    use_cache: bool
    model: str | None
    timeout_s: float


class RerankOptions(TypedDict, total=False):
    """Options of a rerank call; all are optional.

    Attributes:
        lane: the priority, `interactive` or `bulk`; by default, small requests are interactive.
        use_cache: False: bypasses the cache, for reading and for writing.
        model: overrides the client's model.
        timeout_s: overrides the client's timeout of each request.
    """

    lane: Lane | None
    use_cache: bool
    model: str | None
    timeout_s: float


class ClassifyOptions(RerankOptions, total=False):
    """Options of a call for labels; all are optional. They are those of `RerankOptions`."""


class SparseOptions(RerankOptions, total=False):
    """Options of a call for sparse vectors; all are optional. They are those of `EmbedOptions`."""

    input_type: str | None
    truncation: SparseTruncation


class ImageOptions(RerankOptions, total=False):
    """Options of a call for vectors of images; all are optional. They are those of `EmbedOptions`.

    The vectors are comparable with those of texts from the same model: name it in both calls if the
    service has several.
    """

    dimensions: int | None


class ClientOptions(TypedDict, total=False):
    """Options of a client; all are optional.

    Attributes:
        api_key: sent as a bearer token; None: `EMBEDSERVE_API_KEY`.
        model: a name or alias of the model of all calls that name none; None: the service's default
            model for each kind of call.
        timeout_s: the timeout of each request, retries included. Default: 60.
        max_retries: retries after network errors, 429 and 5xx. Default: 5, with a fallback 1.
        retry_delay_s: the maximum delay before the first retry; doubles with each retry.
            Default: 0.25.
        max_retry_delay_s: the upper bound of the delays. Default: 8.
        batch_size: texts per request; longer lists are split. Default: 256.
        concurrency: concurrent requests of one call. Default: 4.
        encoding_format: how vectors are transferred: `raw` bytes (default), or `base64` inside
            JSON for proxies that don't pass binary bodies.
        fallback: `local`: a local model computes while the service is unavailable; `none`: it
            doesn't; None: `EMBEDSERVE_FALLBACK`, or `none`. Or a `Fallback` of your own.
        local_model: the model of the fallback; None: `EMBEDSERVE_LOCAL_MODEL`, or the service's
            default model.
        expected_space: pins the space of all vectors of texts and images: requests name it, and a
            service with another one computes nothing: `SpaceConflictError`. None: the space of the
            first response of each model.
        allow_mixed_spaces: accepts vectors of different spaces. Default: False.
    """

    api_key: str | None
    model: str | None
    timeout_s: float
    max_retries: int
    retry_delay_s: float
    max_retry_delay_s: float
    batch_size: int
    concurrency: int
    encoding_format: EncodingFormat
    fallback: Literal["local", "none"] | Fallback | None
    local_model: str | LocalModel | None
    expected_space: str | Space | None
    allow_mixed_spaces: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[B, R, T]):
    """A call of a client: the requests that it consists of, and how it joins their results."""

    batches: Sequence[B]
    flow: Callable[[B], Flow[R]]  #: of the request for a batch
    join: Callable[[list[R]], T]
    noun: str = "texts"  #: what the batches consist of

    def add_range(self, error: EmbedError, batch_index: int) -> EmbedError:
        """Adds the range of a failed batch to its message, where positions count within it."""
        if len(self.batches) > 1 and isinstance(error, HTTPError):
            start = sum(map(len, self.batches[:batch_index]))
            items = f"{self.noun} {start}-{start + len(self.batches[batch_index]) - 1}"
            error.args = (f"{error.args[0]} Positions are relative to the batch of {items}.",)
        return error


class BaseClient:
    """The options of a client, and the split of a call into requests."""

    def __init__(self, base_url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Creates a client.

        Args:
            base_url: the URL of the service; None: `EMBEDSERVE_URL`, or port 8000 on this machine.
            options: see `ClientOptions`.

        Raises:
            InvalidURLError: the URL is malformed.
            ValueError: an option has an invalid value.
        """
        unknown = options.keys() - ClientOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"A client has no option {min(unknown)!r}.")
        environment = EnvironmentSettings.read()
        self.base_url = _validate_url(base_url or environment.url)
        self.model = options.get("model")
        self.timeout_s = options.get("timeout_s", DEFAULT_TIMEOUT_S)
        self._batch_size = options.get("batch_size", DEFAULT_BATCH_SIZE)
        self._concurrency = options.get("concurrency", DEFAULT_CONCURRENCY)
        if not (self.timeout_s > 0 and self._batch_size >= 1 and self._concurrency >= 1):
            raise ValueError(
                "`timeout_s` must be positive, and `batch_size` and `concurrency` at least 1."
            )
        self._api_key = _validate_api_key(options.get("api_key") or environment.api_key)
        self.fallback = _fallback(options, environment)
        expected_space = options.get("expected_space")
        is_strict = not options.get("allow_mixed_spaces", False)
        self._context = CallContext(
            _retry_policy(options, has_fallback=self.fallback is not None),
            options.get("encoding_format", "raw"),
            SpaceGuard(
                Space.parse(expected_space) if isinstance(expected_space, str) else expected_space,
                strict=is_strict,
            ),
            SpaceGuard(strict=is_strict),
            self.fallback,
            self.model,
        )

    @property
    def space(self) -> Space | None:
        """The space of the vectors of this client's model.

        None: there are none yet, or the space is unknown.
        """
        return self._context.space_guard.expected(self.model)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}

    def _embed_call(
        self, texts: Sequence[str], options: EmbedOptions, batch_size: int | None = None
    ) -> Call[Sequence[str], Vectors, Vectors]:
        batches = self._split(texts, batch_size) or [texts]
        values, timeout_s = self._params(options, EmbedOptions, len(batches))
        params = EmbedParams(**values)
        flow = partial(embed, params=params, context=self._context, timeout_s=timeout_s)
        return Call(batches, flow, concatenate)

    def _image_call(
        self, images: Sequence[ImageInput], options: ImageOptions
    ) -> Call[list[dict[str, str]], Vectors, Vectors]:
        batches = split_images(image_inputs(images), self._batch_size) or [[]]
        values, timeout_s = self._params(options, ImageOptions, len(batches))
        params, context = EmbedParams(**values), self._context

        def flow(batch: list[dict[str, str]]) -> Flow[Vectors]:
            def parse(response: Response) -> Vectors:
                vectors = parse_vectors(response, len(batch))
                context.space_guard.check(vectors.space, params.model)
                return vectors

            pinned = context.space_guard.pinned
            message = embedding_request(batch, params, context.encoding_format, pinned)
            return request(message, parse, context, timeout_s, "embed images")

        return Call(batches, flow, concatenate, "images")

    def _sparse_call(
        self, texts: Sequence[str], options: SparseOptions
    ) -> Call[Sequence[str], list[SparseVector], list[SparseVector]]:
        batches = self._split(texts)
        values, timeout_s = self._params(options, SparseOptions, len(batches))
        params, context = SparseParams(**values), self._context

        def flow(batch: Sequence[str]) -> Flow[list[SparseVector]]:
            def parse(response: Response) -> list[SparseVector]:
                context.sparse_space_guard.check(parse_space(response), params.model)
                return parse_sparse_vectors(response, len(batch))

            message = sparse_request(batch, params)
            return request(message, parse, context, timeout_s, "compute sparse vectors")

        return Call(batches, flow, lambda parts: list(chain.from_iterable(parts)))

    def _rerank_call(
        self, query: str, documents: Sequence[str], top_n: int | None, options: RerankOptions
    ) -> Call[Sequence[str], list[RerankResult], list[RerankResult]]:
        if isinstance(documents, str):
            raise ValueError("`documents` is one string. Pass a list of strings.")
        batches = self._split(documents)
        values, timeout_s = self._params(options, RerankOptions, len(batches))
        params, context = RerankParams(top_n, **values), self._context

        def flow(batch: Sequence[str]) -> Flow[list[RerankResult]]:
            message = rerank_request(query, batch, params)
            parse = partial(parse_ranking, documents=batch, top_n=top_n)
            return request(message, parse, context, timeout_s, "rerank")

        def join(rankings: list[list[RerankResult]]) -> list[RerankResult]:
            return merge_rankings(rankings, list(map(len, batches)), top_n)

        return Call(batches, flow, join, "documents")

    def _classify_call(
        self, texts: Sequence[str], options: ClassifyOptions
    ) -> Call[Sequence[str], list[list[LabelScore]], list[list[LabelScore]]]:
        batches = self._split(texts)
        values, timeout_s = self._params(options, ClassifyOptions, len(batches))
        params, context = ClassifyParams(**values), self._context

        def flow(batch: Sequence[str]) -> Flow[list[list[LabelScore]]]:
            message = classify_request(batch, params)
            parse = partial(parse_labels, n=len(batch))
            return request(message, parse, context, timeout_s, "classify")

        return Call(batches, flow, lambda parts: list(chain.from_iterable(parts)))

    def _split(self, items: Sequence[str], batch_size: int | None = None) -> list[Sequence[str]]:
        size = batch_size or self._batch_size
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _params(
        self, options: Mapping[str, Any], known: type, n_requests: int
    ) -> tuple[dict[str, Any], float]:
        """Returns the parameters of the requests of a call, and the timeout of each in seconds.

        Raises:
            TypeError: an option isn't in the class `known`.
        """
        unknown = options.keys() - known.__annotations__.keys()
        if unknown:
            raise TypeError(f"The call has no option {min(unknown)!r}.")
        params = dict(options)
        timeout_s = float(params.pop("timeout_s", self.timeout_s))
        params["model"] = params.get("model") or self.model
        if n_requests > 1:
            # The last batch may be short, but it isn't interactive either.
            params["lane"] = params.get("lane") or "bulk"
        return params, timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"


def _retry_policy(options: ClientOptions, *, has_fallback: bool) -> RetryPolicy:
    default = RetryPolicy()
    return RetryPolicy(
        # With a local model, waiting for many retries isn't worth it.
        options.get("max_retries", 1 if has_fallback else default.max_retries),
        options.get("retry_delay_s", default.retry_delay_s),
        options.get("max_retry_delay_s", default.max_retry_delay_s),
    )


def _fallback(options: ClientOptions, environment: EnvironmentSettings) -> Fallback | None:
    fallback = options.get("fallback") or environment.fallback or "none"
    if isinstance(fallback, Fallback):
        return fallback
    if fallback not in ("local", "none"):
        raise ValueError(f"`fallback` must be 'local' or 'none', not {fallback!r}.")
    if fallback == "none":
        return None
    model = options.get("local_model") or environment.local_model
    return Fallback(model if isinstance(model, LocalModel) else LocalModel(str(model)))


def _validate_api_key(key: str | None) -> str | None:
    # HTTP libraries quote a header that they can't send in their error.
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError(
            "The API key has a line break or another character that a header can't hold. Is it "
            "read from a file? Remove the end of the line."
        )
    return key


def _validate_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidURLError(f"{url!r} isn't a valid URL. The form is http://host:port.")
    return url.rstrip("/")


def parse_health(response: Response) -> dict[str, Any]:
    """Parses the response of `/health`, which also has a body when its status is 503.

    Raises:
        HTTPError: another error status.
        ParseError: the body isn't a JSON object.
    """
    if response.status != 503 and (error := status_error(response)):
        raise error
    return parse_object(response)


def parse_model_names(body: Mapping[str, Any]) -> list[str]:
    """Returns the model names in the body of `/v1/models`."""
    return [str(item["id"]) for item in body.get("data", [])]
