"""Runs a request's job on a model of another space while the requested model fails."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from serve_app.errors import EmbedServeError
from serve_app.jobs import Job
from serve_app.metrics import FALLBACK_TEXTS
from serve_app.results import Result
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.web.admission import Admission
from serve_app.web.endpoint import Endpoint, ParsedRequest
from serve_app.web.exchange import Exchange
from serve_app.web.request_headers import (
    apply_request_headers,
    request_timeout_s,
    require_space,
)


class Alternative(NamedTuple):
    """What another model than the requested one has answered."""

    service: EmbedService
    parsed: ParsedRequest
    job: Job[Result]
    result: Result
    headers: Mapping[str, str]


async def run_alternative(
    catalog: Catalog,
    admission: Admission,
    exchange: Exchange,
    endpoint: Endpoint,
    fields: Mapping[str, Any],
    headers: Mapping[str, str],
    error: EmbedServeError,
) -> Alternative:
    """Runs the job on the first alternative of its model that can run it.

    Args:
        catalog: the models.
        admission: checks the limits of the API key.
        exchange: the request; its model and its job are replaced by those that succeed.
        endpoint: reads the body for another model.
        fields: the body.
        headers: the headers of the request.
        error: why the model failed.

    Raises:
        EmbedServeError: `error`, if no other model can run the job until the request's deadline.
    """
    service, job = exchange.service, exchange.job
    assert service is not None, "The job has failed, so there is one."
    assert job is not None, "It has failed."
    if not error.allows_fallback or not _is_portable(job, catalog):
        raise error
    timeout_s = min(request_timeout_s(headers), catalog.settings.request_timeout_s)
    for other in catalog.alternatives(service):
        left_s = timeout_s - (time.perf_counter() - exchange.started_s)
        if left_s <= 0:
            break
        try:
            require_space(headers.get("x-embedding-space"), other.spec.space_id)
            parsed = endpoint.parse(endpoint.name_model(fields, other.spec.name), other.spec)
            job = apply_request_headers(parsed.job, headers)
            result, key_headers = await admission.run(exchange.key, other, job, left_s)
        except EmbedServeError:
            continue
        texts = sum(len(part.token_counts) for part in result.parts)
        service.meter.add(FALLBACK_TEXTS, texts, other.spec.name)
        exchange.service, exchange.job = other, job
        return Alternative(
            other,
            parsed,
            job,
            result,
            {**key_headers, "x-embedding-model": other.spec.name},
        )
    raise error


def _is_portable(job: Job[Result], catalog: Catalog) -> bool:
    """Returns whether a job means the same to another model: token ids don't."""
    has_ids = any(isinstance(value, tuple) for value in job.inputs)
    return bool(job.tasks) and not (has_ids and catalog.settings.token_ids == "model")
