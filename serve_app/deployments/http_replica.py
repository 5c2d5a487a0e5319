"""A replica that takes HTTP requests and handle calls of Ray jobs: request → service → reply."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, cast

from ray.serve.schema import ReplicaRank
from starlette.types import ASGIApp

from serve_app.access.entrance import Entrance, require_keys_beyond_loopback
from serve_app.access.shared_ledger import open_ledger
from serve_app.access.shared_quota import open_quota_store
from serve_app.cache.report import CacheReport, WarmResult
from serve_app.cache.stack import CacheStack
from serve_app.config import AppConfig, RequestSettings, deployment_names
from serve_app.deployments.ingress_stats import IngressStats
from serve_app.deployments.retrying_call import returns_errors
from serve_app.deployments.service_identity import current_replica, http_host
from serve_app.deployments.warm_job import warm_job
from serve_app.inputs import Image, TextPair
from serve_app.jobs import EmbedJob, Job, ResultT, ScoreJob, SparseJob, TokenVectorsJob
from serve_app.live.replica_sample import ReplicaSample
from serve_app.live.replica_sampler import ReplicaSampler
from serve_app.meter import Gauges, Meter, export
from serve_app.models import ModelSpec
from serve_app.results import Result
from serve_app.scheduler.pool_sample import PoolSample
from serve_app.service.alias import Requester
from serve_app.service.backend import EngineCalls
from serve_app.service.catalog import EngineFailures
from serve_app.service.composition import create_catalog
from serve_app.service.embed import CountReplicas
from serve_app.spans import current
from serve_app.tasks import Task
from serve_app.totals import Totals
from serve_app.tracing import open_tracer
from serve_app.types import CacheState, Float32, Lane, Row, Tier
from serve_app.valkey.shared_server import ServiceIdentity
from serve_app.web.app import create_app
from serve_app.web.limits import ConcurrencyLimiter
from serve_app.web.request_headers import require_space
from serve_app.web.schema.images import parse_image


class HttpReplica:
    """The services of all models in one process, behind HTTP and Ray handles.

    A subclass calls `_serve` when it is created, and implements `_apply`.
    """

    settings_type: ClassVar[type[RequestSettings]]

    def _serve(
        self,
        config: AppConfig,
        specs: Sequence[ModelSpec],
        cache: CacheStack,
        engine: Callable[[str], EngineCalls],
        meter: Meter,
        *,
        service: ServiceIdentity,
        cache_state: Callable[[], Coroutine[Any, Any, CacheState]],
        engine_failures: EngineFailures,
        count_replicas: Callable[[str], CountReplicas] | None = None,
        pool: Callable[[], PoolSample] | None = None,
    ) -> None:
        """Creates the services.

        Args:
            config: the application's configuration.
            specs: the models.
            cache: the cache of this process.
            engine: returns for an engine's id the calls that bypass the cache.
            meter: counts what the process does.
            service: selects the embedded cache server, which has quotas and costs too.
            cache_state: returns the state of L2.
            engine_failures: see `Catalog`.
            count_replicas: see `create_catalog`.
            pool: returns the state of the models that this process runs; None: it runs none.
        """
        self._meter = meter
        self._cache = cache
        self._tracer = open_tracer(config.tracing, meter, deployment_names(config)[0])
        self._config = config
        quotas = open_quota_store(config.cache, service, meter)
        ledger = open_ledger(config.cache, service, meter, specs)
        self._entrance = Entrance(quotas, meter, ledger=ledger)
        self._limiter = ConcurrencyLimiter()
        self._sampler = ReplicaSampler(
            current_replica(),
            meter,
            in_flight=lambda: self._limiter.in_progress,
            pool=pool,
            cache=cache,
            keys=self._entrance.key_levels,
            shadows=lambda: self._catalog.shadow_samples(),
        )
        stats = IngressStats(meter, deployment_names(config), self._sampler)
        self._catalog = create_catalog(
            config,
            specs,
            cache,
            engine,
            self.settings_type(),
            meter,
            stats,
            cache_state=cache_state,
            engine_failures=engine_failures,
            count_replicas=count_replicas,
        )
        self._export_task: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(
            self._catalog,
            self._entrance,
            self._config.cors_origins,
            tracer=self._tracer,
            console=self._config.console,
            limiter=self._limiter,
        )

    async def reconfigure(self, user_config: dict[str, Any] | None, rank: ReplicaRank) -> None:
        """Applies settings.

        Ray calls it before the first request and after each change. The parameter `rank` makes Ray
        call it even without a `user_config`, and when it reassigns ranks.

        Raises:
            ConfigurationError: the API keys are invalid, or HTTP is reachable from other machines
                without any. Ray then stops the replica, starts another one and reports the error.
        """
        settings = self.settings_type.parse(user_config)
        require_keys_beyond_loopback(await http_host(), settings.access)
        self._entrance.apply(settings.access)
        if self._export_task is None:
            self._export_task = asyncio.create_task(export(self._meter, self._gauges))
            self._cache.start()
        self._apply(settings, rank)
        self._catalog.apply(settings)

    def _apply(self, settings: Any, rank: ReplicaRank) -> None:
        """Applies the settings of what a subclass adds."""
        raise NotImplementedError

    def _gauges(self) -> Gauges:
        return {**self._cache.gauges(), **self._catalog.gauges()}

    async def embed(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
        space: str | None = None,
    ) -> Float32:
        """Embeds texts for another Ray job.

            handle = serve.get_app_handle("embedserve")
            vectors = handle.embed.remote(["a text", "another"]).result()

        Args:
            texts: a text or several.
            model: name or alias of the model; None selects the default model.
            input_type: name of one of the model's prompts; None selects the default prompt.
            lane: priority; None selects it by the number of texts.
            use_cache: False computes the vectors and doesn't store them.
            trace_context: `traceparent` and `tracestate` of the caller, as OpenTelemetry's
                `inject` writes them into a dict; the call becomes part of that trace.
            space: the space that the vectors must be comparable with; None accepts any.

        Returns:
            Vectors of shape (n, dim), float32, in the order of the texts.

        Raises:
            SpaceConflict: they can't be compared with `space`; nothing was computed.
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        job = EmbedJob(_as_tuple(texts), input_type, lane=lane, use_cache=use_cache)
        return (await self._run(job, model, trace_context, space)).vectors

    async def embed_images(
        self,
        images: bytes | Sequence[bytes | str],
        model: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
    ) -> Float32:
        """Embeds images, in one vector space with texts.

        Args:
            images: PNG, JPEG, WebP or GIF: the bytes of a file or several, or data URIs; also URLs
                whose hosts `allow_image_urls` names.
            model: name or alias of the model; None selects the default model of images.
            lane: priority; None selects it by the number of images.
            use_cache: False computes the vectors and doesn't store them.
            trace_context: see `embed`.

        Returns:
            Vectors of shape (n, dim), float32, in the order of the images.

        Raises:
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        inputs = tuple(
            Image(image) if isinstance(image, bytes) else parse_image(image, "images")
            for image in ([images] if isinstance(images, bytes | str) else images)
        )
        job = EmbedJob(inputs, lane=lane, use_cache=use_cache)
        return (await self._run(job, model, trace_context)).vectors

    async def embed_sparse(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
    ) -> list[Row]:
        """Computes sparse vectors; the arguments are those of `embed`.

        Returns:
            For each text an array of `SPARSE_DTYPE`, by ascending index, without zeros.

        Raises:
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        job = SparseJob(EmbedJob(_as_tuple(texts), input_type, lane=lane, use_cache=use_cache))
        return (await self._run(job, model, trace_context)).vectors

    async def embed_tokens(
        self,
        texts: Sequence[str],
        model: str | None = None,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
    ) -> list[Float32]:
        """Computes one vector per token; the arguments are those of `embed`.

        Returns:
            For each text an array of shape (tokens, width), float32.

        Raises:
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        job = EmbedJob(_as_tuple(texts), input_type, lane=lane, use_cache=use_cache)
        return (await self._run(TokenVectorsJob(job), model, trace_context)).vectors

    async def rerank(
        self,
        query: str,
        documents: Sequence[str],
        model: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
    ) -> Float32:
        """Scores documents by their relevance to a query.

        Args:
            query: the query.
            documents: the texts to score.
            model: name or alias of the model; None selects the default reranker.
            lane: priority; None selects it by the number of documents.
            use_cache: False computes the scores and doesn't store them.
            trace_context: see `embed`.

        Returns:
            The scores as the model's library returns them, of shape (n,), float32, in the order of
            the documents.

        Raises:
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        pairs = tuple(TextPair(query, document) for document in _as_tuple(documents))
        job = ScoreJob(pairs, lane=lane, use_cache=use_cache)
        return (await self._run(job, model, trace_context)).scores[:, 0]

    async def classify(
        self,
        texts: Sequence[str],
        model: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
        trace_context: Mapping[str, str] | None = None,
    ) -> Float32:
        """Scores the labels of a classifier; the arguments are those of `embed`.

        Returns:
            The scores as the model's library returns them, of shape (n, labels), float32.

        Raises:
            EmbedServeError: see `EmbedService.run`; the caller gets the same type.
        """
        job = ScoreJob(_as_tuple(texts), "classify", lane=lane, use_cache=use_cache)
        return (await self._run(job, model, trace_context)).scores

    async def _run(
        self,
        job: Job[ResultT],
        model: str | None,
        trace_context: Mapping[str, str] | None,
        space: str | None = None,
    ) -> ResultT:
        (task,) = job.tasks
        span = None
        if self._tracer is not None:
            span = self._tracer.start(f"handle {task}", trace_context or {})
        if span is None:
            return await self._run_task(job, model, task, space)
        span.set({"embedserve.texts": len(job.inputs)})
        with current(span):
            return await self._run_task(job, model, task, space)

    async def _run_task(
        self, job: Job[ResultT], model: str | None, task: Task, space: str | None
    ) -> ResultT:
        alias = self._catalog.alias(model, task)
        service = self._catalog.resolve(model, task)
        if alias is not None:
            service = alias.select(Requester(space=space))
        require_space(space, service.spec.space_id)
        result = await service.run(job)
        self._entrance.charge(None, cast(Result, result))
        if alias is not None:
            alias.observe(service, cast(Job[Result], job), cast(Result, result))
        return result

    async def space(self, model: str | None = None) -> str:
        """Returns the embedding space of a model's vectors, `<family>-<precision>`.

        Vectors are comparable if their spaces are equal, or are float precisions of one family.

        Args:
            model: name or alias of the model; None selects the one of `embed`.
        """
        return self._catalog.resolve(model, "embed").spec.space_id

    @returns_errors
    async def warm(
        self, texts: Sequence[str], input_type: str | None = None, model: str | None = None
    ) -> WarmResult:
        """Computes the outputs of texts in the bulk lane, to fill the cache.

        Raises:
            UnsupportedOperation: the model scores pairs of texts.
        """
        service = self._catalog.resolve(model, "embed")
        result = await service.run(warm_job(service.spec, texts, input_type))
        self._entrance.charge(None, result)
        return WarmResult(len(texts), result.tiers.tolist().count(Tier.COMPUTED))

    async def cache_report(self) -> CacheReport:
        """Returns statistics of this replica's cache tiers."""
        return await self._cache.report()

    @returns_errors
    async def purge_cache(self, model: str | None = None) -> int | None:
        """Deletes the cached outputs of a model, or of all; see `CacheStack.purge`."""
        return await self._cache.purge(model)

    async def replica_totals(self) -> Totals:
        """Returns the totals of the requests that this replica answered."""
        return self._meter.totals()

    async def reset_totals(self) -> None:
        """Resets the totals of this replica to zero."""
        self._meter.reset()

    async def replica_sample(self) -> ReplicaSample:
        """Returns the state of this replica, for live views."""
        return self._sampler.sample()

    async def __del__(self) -> None:
        """Closes the cache and the quota store; Ray awaits it when the replica stops."""
        await self._catalog.close()
        await self._entrance.close()
        await self._cache.close()
        if self._tracer is not None:
            await self._tracer.close()


def _as_tuple(texts: Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)
