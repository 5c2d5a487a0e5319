"""Sends the texts of a batch to a provider: retries, bisection, token counts."""

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence

from serve_app.config import ProviderSettings
from serve_app.cost import token_cost
from serve_app.errors import (
    DeadlineExceeded,
    EmbedServeError,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UpstreamError,
)
from serve_app.meter import ModelMeter
from serve_app.metrics import (
    PROVIDER_CALLS,
    PROVIDER_NANO_USD,
    PROVIDER_RETRIES,
    PROVIDER_SECONDS,
    PROVIDER_TEXTS,
    PROVIDER_TOKENS,
)
from serve_app.model_spec import ModelSpec
from serve_app.providers.base import EmbeddedTexts, Provider
from serve_app.providers.call_gate import CallGate
from serve_app.providers.provider_group import (
    ProviderText,
    bisect,
    fail_groups,
    groups_of,
    waiting,
)
from serve_app.providers.token_counts import distribute_tokens
from serve_app.scheduler.batch_span import batch_span

logger = logging.getLogger(__name__)

#: A provider that hasn't answered within this time is failing, and clients with less time than
#: `timeout_s` would never find out. They give up at their deadline, or just before.
_ENOUGH_S = 5.0
_ALL = 0.95
#: The tag of `PROVIDER_CALLS` for each error.
_OUTCOMES: tuple[tuple[type[EmbedServeError], str], ...] = (
    (InvalidRequest, "refused"),
    (Overloaded, "rate_limited"),
    (Unavailable, "unavailable"),
    (DeadlineExceeded, "too_late"),
)


class ProviderCaller:
    """Makes the calls of one model. Belongs to one event loop."""

    def __init__(
        self,
        spec: ModelSpec,
        provider: Provider,
        settings: ProviderSettings,
        gate: CallGate,
        meter: ModelMeter,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Creates a caller.

        Args:
            spec: the model.
            provider: makes a call.
            settings: time limit and number of retries.
            gate: decides whether calls may start.
            meter: counts calls, texts, tokens and their price.
            clock: monotonic time in seconds.
            sleep: waits for some seconds.
        """
        self._spec = spec
        self._provider = provider
        self._settings = settings
        self._gate = gate
        self._meter = meter
        self._clock = clock
        self._sleep = sleep
        self._attributes = {"embedserve.model": spec.name}

    async def run(self, batch: Sequence[ProviderText], *, is_probe: bool = False) -> None:
        """Resolves the groups of a batch, which is sent in one call if nothing fails.

        Texts that nobody waits for any more are left out of each further call.

        Args:
            batch: texts with one prompt, within the limits of a call.
            is_probe: whether the first call decides if the breaker closes.
        """
        parts = [(batch, 0)]  # with the number of retries before
        while parts:
            texts, attempt = parts.pop()
            texts = await self._wait_for_rate_limit(waiting(texts))
            if (failure := self._gate.failure) is not None and not is_probe:
                fail_groups(texts, failure)
                continue
            if not texts:
                continue
            error = await self._call(texts, is_probe=is_probe)
            is_probe = False
            if isinstance(error, InvalidRequest):
                halves = bisect(texts)
                parts += [(half, 0) for half in reversed(halves)]
                if not halves:
                    refused = InvalidRequest(f"{error} The text is {texts[0].quote()}.", "texts")
                    fail_groups(texts, refused)
            elif error is not None and await self._back_off(texts, error, attempt):
                parts.append((texts, attempt + 1))

    async def _call(
        self, texts: Sequence[ProviderText], *, is_probe: bool
    ) -> EmbedServeError | None:
        """Makes one call, and returns its error; None: the texts have their vectors."""
        started_s = self._clock()
        deadline_s = max(text.group.text_group.deadline_s for text in texts)
        timeout_s = max(min(self._settings.timeout_s, deadline_s - started_s), 0.0)
        try:
            embedded = await self._embed(texts, timeout_s)
        except EmbedServeError as error:
            if isinstance(error, Unavailable) and self._clock() >= deadline_s:
                error = _too_late(timeout_s)
                self._record_unanswered(started_s, deadline_s, is_probe=is_probe)
            else:
                self._gate.record(error, is_probe=is_probe)
            outcome = next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "failed")
            self._meter.add(PROVIDER_CALLS, 1, outcome)
            return error
        except asyncio.CancelledError:
            self._meter.add(PROVIDER_CALLS, 1, "cancelled")
            self._record_unanswered(started_s, deadline_s, is_probe=is_probe)
            raise
        self._gate.record(None, is_probe=is_probe)
        self._set_vectors(texts, embedded, self._clock() - started_s)
        return None

    def _record_unanswered(self, started_s: float, deadline_s: float, *, is_probe: bool) -> None:
        """Records a call that its callers gave up, as a failure if their time was enough."""
        waited_s = self._clock() - started_s
        if waited_s >= max(_ENOUGH_S, _ALL * (deadline_s - started_s)):
            self._gate.record(_no_answer(self._spec.name, waited_s), is_probe=is_probe)
        elif is_probe:
            self._gate.end_probe()

    async def _embed(self, texts: Sequence[ProviderText], timeout_s: float) -> EmbeddedTexts:
        try:
            with batch_span("provider call", texts, self._attributes, is_call=True):
                async with asyncio.timeout(timeout_s):
                    return await self._provider.embed(
                        [text.text for text in texts], texts[0].group.queue.prompt, timeout_s
                    )
        except EmbedServeError:
            raise
        except TimeoutError:
            raise _no_answer(self._spec.name, timeout_s) from None
        except Exception as error:
            # Without its message, which may quote a header with the key.
            logger.error(
                "The client of the provider of %s failed: %s\n%s",
                self._spec.name,
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
            )
            name = type(error).__name__
            raise UpstreamError(f"The client of the provider failed: {name}.") from None

    def _set_vectors(
        self, texts: Sequence[ProviderText], embedded: EmbeddedTexts, seconds: float
    ) -> None:
        counts = [text.length for text in texts]
        total_tokens = embedded.total_tokens
        if total_tokens is None:
            total_tokens = sum(counts)
        elif not all(text.group.is_counted for text in texts):
            counts = distribute_tokens(total_tokens, [text.text for text in texts])
        self._meter.add(PROVIDER_CALLS, 1, "ok")
        self._meter.add(PROVIDER_SECONDS, seconds)
        self._meter.add(PROVIDER_TEXTS, len(texts))
        self._meter.add(PROVIDER_TOKENS, total_tokens)
        price = token_cost(total_tokens, self._spec.nano_usd_per_1k_tokens)
        self._meter.add(PROVIDER_NANO_USD, price)
        now_s = self._clock()
        for group in groups_of(texts):
            group.add_inference_time(seconds)
        for text, vector, tokens in zip(texts, embedded.vectors, counts, strict=True):
            text.group.set_vector(text.index, vector, tokens, now_s)

    async def _back_off(
        self, texts: Sequence[ProviderText], error: EmbedServeError, attempt: int
    ) -> bool:
        """Waits before a retry. Returns False if there is none, and fails the groups then."""
        delay_s = self._gate.backoff_s(error, attempt)
        until_s = self._clock() + delay_s
        if isinstance(error, Overloaded):
            error = Overloaded(str(error), math.ceil(delay_s))
        if isinstance(error, Overloaded | Unavailable) and error.retry_after_s:
            self._gate.pause(error, until_s)
        retryable = isinstance(error, Overloaded | Unavailable)
        refused = self._gate.failure or self._gate.refusal(math.inf)
        if not retryable or attempt >= self._settings.max_retries or refused:
            fail_groups(texts, error)
            return False
        if not await self._wait(texts, until_s, error):
            return False
        self._meter.add(PROVIDER_RETRIES)
        return True

    async def _wait_for_rate_limit(self, texts: Sequence[ProviderText]) -> Sequence[ProviderText]:
        """Waits while the provider wants no calls; returns the texts that somebody waits for."""
        while texts and self._gate.paused_until_s > self._clock():
            if (refusal := self._gate.refusal(math.inf)) is not None:
                fail_groups(texts, refusal)
                return []
            texts = await self._wait(texts, self._gate.paused_until_s, self._gate.pause_error)
        return texts

    async def _wait(
        self, texts: Sequence[ProviderText], until_s: float, error: EmbedServeError
    ) -> list[ProviderText]:
        """Waits, and fails the groups that can't; returns the texts that somebody waits for."""
        fail_groups([t for t in texts if t.group.text_group.deadline_s <= until_s], error)
        if waiting(texts):
            await self._sleep(max(until_s - self._clock(), 0.0))
        return waiting(texts)


def _too_late(timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"The provider didn't answer within the {timeout_s:.3g} s that were left of the request's "
        "time limit. Send fewer texts in one request, or allow more time."
    )


def _no_answer(model: str, seconds: float) -> Unavailable:
    return Unavailable(f"The provider of {model} didn't answer within {seconds:.3g} s.")
