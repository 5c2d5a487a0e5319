"""The span of a batch, or of a call of a provider, that several requests wait for."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from serve_app.scheduler.pending import QueuedGroup
from serve_app.spans import Attributes, Span, current, ending


class _Text(Protocol):
    @property
    def group(self) -> QueuedGroup: ...

    @property
    def length(self) -> int: ...


@contextmanager
def batch_span(
    name: str, texts: Sequence[_Text], attributes: Attributes, *, is_call: bool = False
) -> Iterator[None]:
    """Records a batch until the end of the block, if one of its requests is traced.

    The span belongs to the trace of the first such request, and has links to all of them. Each
    request has a span `infer` for the same time in its own trace, with a link to the batch.

    Args:
        name: of the operation.
        texts: of the batch; the time of their groups in the queue ends.
        attributes: what is known of the batch; the numbers of texts and tokens are added.
        is_call: whether another process computes it.
    """
    requests = _leave_queue(texts)
    if not requests:
        yield
        return
    lengths = [text.length for text in texts]
    sizes = {"embedserve.texts": len(lengths), "embedserve.tokens": sum(lengths)}
    attributes = {**attributes, **sizes}
    with ExitStack() as stack:
        spans = [stack.enter_context(ending(span.child("infer", attributes))) for span in requests]
        batch = spans[0].child(name, attributes, links=spans, is_call=is_call)
        for span in spans[1:]:
            span.link(batch)
        stack.enter_context(current(batch))
        yield


def _leave_queue(texts: Sequence[_Text]) -> list[Span]:
    """Returns the spans of the groups that are recorded, or else one that passes a context on."""
    groups = {id(text.group): text.group for text in texts if text.group.queue_span is not None}
    for group in groups.values():
        group.leave_queue()
    spans = [span for group in groups.values() if (span := group.text_group.span) is not None]
    return [span for span in spans if span.is_recorded] or spans[:1]
