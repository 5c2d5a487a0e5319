"""Admission: headers → API key → quota reservation → job → result and billed tokens."""

import math
from collections.abc import Mapping

from serve_app.access.entrance import Entrance
from serve_app.config import ApiKey
from serve_app.inputs import estimated_tokens
from serve_app.jobs import Job
from serve_app.results import Result
from serve_app.service.embed import EmbedService
from serve_app.web.endpoint import Account
from serve_app.web.request_headers import unfold


class Admission:
    """Runs jobs within the limits of their API keys."""

    def __init__(self, access: Entrance) -> None:
        self._access = access

    def identify(self, headers: Mapping[str, str]) -> ApiKey | None:
        """Returns the API key of a request; None where the service requires none.

        Raises:
            Unauthorized: the key is missing or unknown.
        """
        api_key = headers.get("x-api-key") or headers.get("api-key") or ""
        return self._access.identify(unfold(headers.get("authorization", "")), unfold(api_key))

    async def run(
        self,
        key: ApiKey | None,
        service: EmbedService,
        job: Job[Result],
        timeout_s: float = math.inf,
    ) -> tuple[Result, Mapping[str, str]]:
        """Runs a job within the key's limits; see `EmbedService.run`.

        Returns:
            The result, and the rate limit headers; none where `key` is None.

        Raises:
            Forbidden: the key doesn't allow this model.
            QuotaExceeded: a limit of the key is reached.
            BudgetExceeded: the model has a price, and the key's budget is used up.
            EmbedServeError: see `EmbedService.run`.
        """
        result: Result
        if key is None:
            result = await service.run(job, timeout_s)
            self._charge(None, result)
            return result, {}
        spec = service.spec
        if spec.nano_usd_per_1k_tokens:
            self._access.check_budget(key, spec.name)
        estimate = sum(min(estimated_tokens(text), spec.max_tokens) for text in job.inputs)
        reservation = await self._access.admit(key, spec.name, estimate)
        billed_tokens: int | None = None
        try:
            if key.lane is not None:
                job = job.with_options(lane=key.lane)
            result = await service.run(job, timeout_s)
            billed_tokens = result.billed_tokens
            self._charge(key, result)
        finally:
            await self._access.release(reservation, billed_tokens)
        return result, reservation.headers()

    def account(self, key: ApiKey | None) -> Account:
        """Returns what a request with a key may know of the costs."""
        return Account(self._access.ledger, None if key is None else key.name)

    def budget_headers(self, key: ApiKey | None) -> Mapping[str, str]:
        """Returns the headers of a response to a request with a key that has a budget."""
        if key is None or key.max_usd_per_month is None:
            return {}
        return self._access.budget_headers(key)

    def _charge(self, key: ApiKey | None, result: Result) -> None:
        if result.cost is not None:
            self._access.charge(key, result)
