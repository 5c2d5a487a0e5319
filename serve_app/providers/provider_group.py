"""Groups of texts for a provider, and the calls that they wait for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.errors import EmbedServeError
from serve_app.scheduler.pending import QueuedGroup
from serve_app.types import Lane, Row, TextGroup

_MAX_QUOTED_CHARS = 60


class PromptQueue(NamedTuple):
    """A queue. A call holds texts of one queue, since a prompt is a parameter of the call."""

    prompt: str
    lane: Lane


class ProviderGroup(QueuedGroup):
    """A group of texts that a provider embeds.

    The errors of its `future` are those of `Provider.embed`, and `DeadlineExceeded`.
    """

    def __init__(self, group: TextGroup, texts: Sequence[str]) -> None:
        """Creates a group.

        Args:
            group: the group of the caller.
            texts: its texts.
        """
        super().__init__(group)
        self.texts = texts
        self.queue = PromptQueue(group.prompt, group.lane)

    def split(
        self, tokens: Sequence[int], *, is_counted: bool, arrival_s: float
    ) -> list["ProviderText"]:
        """Returns one `ProviderText` for each text.

        Args:
            tokens: the number of tokens of each text.
            is_counted: whether a tokenizer has counted them; else they are estimates.
            arrival_s: time of arrival by the clock of the scheduler.
        """
        self.is_counted = is_counted
        self._expect(tokens, [False] * len(tokens), arrival_s, 0.0)
        return [
            ProviderText(self, i, text, length)
            for i, (text, length) in enumerate(zip(self.texts, tokens, strict=True))
        ]

    def set_vector(self, index: int, vector: Row, tokens: int, now_s: float) -> None:
        """Stores the vector and the number of tokens of one text; the last resolves `future`."""
        self._tokens[index] = tokens
        self.set_result(index, vector, now_s)


@dataclass(slots=True, eq=False)
class ProviderText:
    """One text in the queue."""

    group: ProviderGroup
    index: int  #: its position in the group
    text: str
    length: int  #: number of tokens, or an estimate

    def quote(self) -> str:
        """Returns the beginning of the text for an error message."""
        ellipsis = "…" if len(self.text) > _MAX_QUOTED_CHARS else ""
        return f"{self.text[:_MAX_QUOTED_CHARS]!r}{ellipsis}"


def groups_of(texts: Sequence[ProviderText]) -> list[ProviderGroup]:
    """Returns the groups of texts, each once."""
    return list({id(text.group): text.group for text in texts}.values())


def waiting(texts: Sequence[ProviderText]) -> list[ProviderText]:
    """Returns the texts that somebody waits for."""
    return [text for text in texts if not text.group.future.done()]


def bisect(texts: Sequence[ProviderText]) -> list[Sequence[ProviderText]]:
    """Returns texts as two halves, with different groups if there are several; [] for one text."""
    groups = groups_of(texts)
    if len(groups) == 1:
        half = len(texts) // 2
        return [texts[:half], texts[half:]] if half else []
    first = set(map(id, groups[: len(groups) // 2]))
    return [[text for text in texts if (id(text.group) in first) == side] for side in (True, False)]


def fail_groups(texts: Sequence[ProviderText], error: EmbedServeError) -> None:
    """Fails the groups of texts, unless they are done."""
    for text in texts:
        text.group.fail(error)
