"""Runs several jobs of one request."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serve_app.jobs import BatchJob
from serve_app.results import BatchResult, ComputedResult
from serve_app.service.task_context import TaskContext
from serve_app.service.validation import validate_inputs


async def run_batch(
    context: TaskContext,
    batch: BatchJob,
    timeout_s: float,
    *,
    runners: Mapping[type, Callable[[TaskContext, Any, float], Awaitable[ComputedResult]]],
) -> BatchResult:
    """Returns the results of several jobs.

    Args:
        context: the model.
        batch: the jobs.
        timeout_s: seconds that are left.
        runners: for each type of job the function that runs it.
    """
    inputs = batch.inputs
    validate_inputs(context.replace_invalid(inputs), context.settings)
    lane = context.default_lane(len(inputs))
    jobs = (job.with_options(lane=job.lane or lane) for job in batch.jobs)
    runs = (runners[type(job)](context, job, timeout_s) for job in jobs)
    return BatchResult(await asyncio.gather(*runs))
