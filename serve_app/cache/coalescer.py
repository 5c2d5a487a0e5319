"""Coalesces groups of texts: one call to the next tier instead of many small ones."""

from collections.abc import Callable

from serve_app import coalescer
from serve_app.types import EncodedVectors, TextGroup

_MAX_GROUPS = 64  # in one call
#: Smaller calls are not split further: each costs about as much as a query.
_MIN_SPLIT_GROUPS = 8
#: Larger groups are sent in a call of their own, since they would delay smaller ones.
_MAX_COALESCED_TEXTS = 32
_MAX_COALESCED_CHARS = 16384

#: The vectors of a group, or the error that its requests get.
Result = EncodedVectors | Exception
#: Takes the index of a group in its call, and its result.
Deliver = coalescer.Deliver[EncodedVectors]
#: Embeds the groups of one call. Delivers the result of each as soon as it is known.
Send = coalescer.Send[TextGroup, EncodedVectors]


class GroupCoalescer(coalescer.Coalescer[TextGroup, EncodedVectors]):
    """Sends groups: small interactive ones together, bulk and large ones at once and alone."""

    def __init__(self, send: Send, max_in_flight_calls: float) -> None:
        super().__init__(
            send,
            max_in_flight_calls,
            max_size=_MAX_GROUPS,
            min_split_size=_MIN_SPLIT_GROUPS,
            full_calls_wait=False,
        )

    def submit(
        self, group: TextGroup, on_result: Callable[[Result], None]
    ) -> coalescer.Submission[TextGroup, EncodedVectors]:
        """Sends a group, now or with the next call, and passes its result to `on_result`."""
        if group.lane == "bulk" or _is_large(group):
            return self.submit_alone(group, on_result)
        return super().submit(group, on_result)


def _is_large(group: TextGroup) -> bool:
    texts = group.texts
    return len(texts) > _MAX_COALESCED_TEXTS or sum(map(len, texts)) > _MAX_COALESCED_CHARS
