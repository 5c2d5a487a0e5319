"""Who may ask, and for how much, as far as it concerns a request."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.access.entrance import Entrance
from serve_app.config import ApiKey
from serve_app.service.embed import EmbedService
from serve_app.types import (
    BatchJob,
    DecodeJob,
    EmbedJob,
    EmbedResult,
    Input,
    Job,
    TokenVectors,
    TokenVectorsJob,
)

#: Letters that a token stands for, about, until it is known.
_CHARS_PER_TOKEN = 4


class Admission:
    """Runs jobs of clients that have a key, inside what the key allows."""

    def __init__(self, service: EmbedService, access: Entrance) -> None:
        self._service = service
        self._access = access

    def identify(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Whose request it is; None: nobody needs a key.

        Raises:
            Unauthorized: it has no key, or a wrong one.
        """
        return self._access.identify(headers.get("authorization"), headers.get("x-api-key"))

    async def run(self, key: ApiKey | None, job: Job) -> tuple[Any, Mapping[str, str]]:
        """What the job asks for, and the headers that tell how its key stands with its limits.

        Raises:
            Forbidden: the key is for other models.
            QuotaExceeded: one of its limits is reached.
            EmbedServeError: as `EmbedService.run`.
        """
        if key is None:
            return await self._service.run(job), {}
        model = self._service.spec.name
        reservation = await self._access.admit(key, model, self._estimate(job))
        tokens: int | None = None
        try:
            result = await self._service.run(_in_lane(job, key))
            tokens = _tokens(result)
        finally:
            await self._access.release(reservation, tokens)
        return result, reservation.headers()

    def _estimate(self, job: Job) -> int:
        longest = self._service.spec.max_tokens
        return sum(min(_about(given), longest) for given in _inputs(job))


def _about(given: Input) -> int:
    """About how many tokens a text is."""
    if not isinstance(given, str):
        return len(given) if isinstance(given, tuple) else 0
    return len(given) // _CHARS_PER_TOKEN + 1


def _inputs(job: Job) -> tuple[Input, ...]:
    match job:
        case BatchJob():
            return tuple(text for one in job.jobs for text in one.texts)
        case TokenVectorsJob():
            return job.job.texts
        case DecodeJob():
            return ()
        case _:
            return job.texts


def _in_lane(job: Job, key: ApiKey) -> Job:
    if key.lane is None:
        return job
    match job:
        case EmbedJob():
            return replace(job, lane=key.lane)
        case TokenVectorsJob():
            return replace(job, job=replace(job.job, lane=key.lane))
        case BatchJob():
            return BatchJob(tuple(replace(one, lane=key.lane) for one in job.jobs))
        case _:
            return job


def _tokens(result: Any) -> int:
    """How many tokens the key pays for."""
    match result:
        case EmbedResult():
            return result.total_tokens
        case [EmbedResult(), *_]:
            return sum(one.total_tokens for one in result)
        case [TokenVectors(), *_]:
            return sum(len(one.values) for one in result)
        case _:
            return 0
