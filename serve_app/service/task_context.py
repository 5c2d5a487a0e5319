"""What the tasks of one model share: its properties, limits, checks, and the tiers below."""

import time
from collections.abc import Awaitable, Sequence
from copy import copy
from typing import Any, Self, cast

import numpy as np

from serve_app.config import RequestSettings
from serve_app.errors import InvalidRequest, TextTooLong
from serve_app.inputs import ImageUrl, Input, RequestInput
from serve_app.meter import ModelMeter
from serve_app.models import ModelSpec
from serve_app.service.backend import Backend
from serve_app.service.computed_inputs import ComputedInputs
from serve_app.service.openai_token_ids import TiktokenDecoder
from serve_app.service.truncation import Truncator
from serve_app.service.validation import (
    replace_invalid_characters,
    validate_count,
    validate_inputs,
)
from serve_app.spans import current_span
from serve_app.tasks import Task
from serve_app.types import Bool, Lane, RaggedVectors, TextGroup, Vectors


class TaskContext:
    """The model that a task runs."""

    def __init__(
        self,
        spec: ModelSpec,
        backend: Backend,
        settings: RequestSettings,
        meter: ModelMeter,
        *,
        uncached_tasks: frozenset[Task] = frozenset(),
    ) -> None:
        """Creates a context.

        Args:
            spec: the model.
            backend: the tiers below.
            settings: limits; `apply` replaces them.
            meter: counts the requests of the model.
            uncached_tasks: tasks whose outputs are neither read from the cache nor written to it.

        Raises:
            ConfigurationError: see `apply`.
        """
        self.spec = spec
        self.backend = backend
        self._meter = meter
        self._computed: ComputedInputs | None = None
        self._uncached_tasks = uncached_tasks
        self.apply(settings)

    def apply(self, settings: RequestSettings) -> None:
        """Applies new settings. Requests in progress keep the previous ones.

        Raises:
            ConfigurationError: the encoding of `token_ids` is not available.
        """
        encoding = settings.token_ids
        self._token_id_decoder = None if encoding == "model" else TiktokenDecoder(encoding)
        self._image_fetcher = None
        if settings.allow_image_urls and "embed_images" in self.spec.tasks:
            # Services that fetch no images don't need the memory of an HTTP client.
            from serve_app.service.image_fetcher import ImageFetcher

            self._image_fetcher = ImageFetcher(settings, self._meter)
        self.settings = settings

    def counted(self) -> tuple[Self, ComputedInputs]:
        """Returns this context for one job, and the counts of what it computes."""
        context = copy(self)
        context._computed = computed = ComputedInputs(self.backend)
        return context, computed

    @property
    def truncator(self) -> Truncator:
        """Splits texts over the token limit, and combines the vectors of the parts."""
        return Truncator(
            lambda texts: self.backend.tokenize(texts, True), self.run, self.spec.max_tokens
        )

    def run(self, group: TextGroup) -> Awaitable[Vectors]:
        """Returns the outputs of a group whose task has rows of equal length.

        Raises:
            EmbedServeError: see `Backend.run`.
        """
        return cast(Awaitable[Vectors], (self._computed or self.backend).run(group))

    def run_ragged(self, group: TextGroup) -> Awaitable[RaggedVectors]:
        """Returns the outputs of a group whose task has rows of different lengths.

        Raises:
            EmbedServeError: see `Backend.run`.
        """
        return cast(Awaitable[RaggedVectors], (self._computed or self.backend).run(group))

    async def fetch_images(self, inputs: Sequence[RequestInput]) -> tuple[Input, ...]:
        """Returns inputs with images in place of their URLs.

        Raises:
            InvalidRequest: there are too many inputs, or no URLs are fetched.
            ImageFetchError: see `ImageFetcher.fetch`.
        """
        if self._image_fetcher is None:
            field = next(value.field for value in inputs if isinstance(value, ImageUrl))
            raise InvalidRequest(
                f"`{field}` holds the URL of an image. URLs are not fetched. Send it as a data "
                "URI, `data:image/png;base64,…`.",
                field,
            )
        validate_count(inputs, self.settings)
        return await self._image_fetcher.fetch(inputs)

    def prepare(self, texts: tuple[Any, ...], *, is_split: bool = False) -> tuple[Any, ...]:
        """Returns texts in place of token ids of an OpenAI encoding, and checks all inputs.

        With `invalid_text: replace`, U+FFFD replaces invalid characters.

        Args:
            texts: the inputs of a job.
            is_split: whether they are computed in parts.

        Raises:
            InvalidRequest: see `validate_inputs`.
        """
        if self._token_id_decoder is not None:
            texts = tuple(map(self._token_id_decoder.decode, texts))
        texts = self.replace_invalid(texts)
        validate_inputs(texts, self.settings, is_split=is_split)
        return texts

    def replace_invalid(self, texts: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns texts without invalid characters, if the settings say so."""
        if self.settings.invalid_text == "error":
            return texts
        return tuple(map(replace_invalid_characters, texts))

    def group(
        self,
        task: Task,
        texts: tuple[Input, ...],
        timeout_s: float,
        *,
        input_type: str | None = None,
        lane: Lane | None = None,
        use_cache: bool = True,
    ) -> TextGroup:
        """Returns the group of distinct inputs that the tiers below compute.

        Args:
            task: what to compute.
            texts: distinct inputs.
            timeout_s: when the caller gives up.
            input_type: selects a prompt; None: the default one.
            lane: priority; None: by the number of inputs.
            use_cache: False: bypass the cache.

        Raises:
            InvalidRequest: the model has no such input type.
        """
        group = TextGroup(
            texts,
            self.spec.prompt(input_type),
            use_cache=use_cache and task not in self._uncached_tasks,
            lane=lane or self.default_lane(len(texts)),
            deadline_s=time.monotonic() + timeout_s,
            task=task,
            span=current_span.get(),
        )
        if group.span is not None:
            group.span.set({"embedserve.lane": group.lane, "embedserve.task": task})
        return group

    def default_lane(self, text_count: int) -> Lane:
        """Returns the lane of a request with this number of inputs."""
        return self.settings.default_lane(text_count)

    def reject_truncated(self, truncated: Bool, limit: int | None = None) -> None:
        """Checks that no text was truncated.

        Args:
            truncated: shape (n,); True where the text was over the limit.
            limit: the limit; None: the model's.

        Raises:
            TextTooLong: a text was.
        """
        indices: list[int] = np.flatnonzero(truncated).tolist()
        if indices:
            maximum = (
                f"the {self.spec.max_tokens} tokens that the model takes"
                if limit is None
                else f"{limit} tokens"
            )
            raise TextTooLong(
                f"Text {indices[0]} is longer than {maximum} ({len(indices)} of {len(truncated)} "
                "texts are). Shorten it, or let it be cut.",
                "texts",
            )


def distinct(inputs: Sequence[Input]) -> tuple[tuple[Input, ...], list[int]]:
    """Returns the distinct inputs, and for each input its index among them."""
    rows: dict[Input, int] = {}
    order = [rows.setdefault(value, len(rows)) for value in inputs]
    return tuple(rows), order


def character_count(inputs: Sequence[Input]) -> int:
    """Returns the total length of the texts; token ids and images count as zero."""
    return sum(len(text) for text in inputs if isinstance(text, str))
