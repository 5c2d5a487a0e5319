import math
import pickle
import time

import pytest

from serve_app.spans import TraceContext, UnrecordedSpan
from serve_app.types import TextGroup


def test_a_group_travels_with_what_is_left_of_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    group = TextGroup(("a", (1, 2)), "query: ", False, "bulk", clock[0] + 8, (b"key 1", b"key 2"))
    clock[0] += 3
    pickled = pickle.dumps(group)
    clock[0] = 50.0  # the clock of another machine
    received = pickle.loads(pickled)
    assert received.deadline_s == 50 + 5
    received.deadline_s = group.deadline_s
    assert received == group


def test_a_group_travels_with_its_task_and_whether_another_replica_had_it() -> None:
    group = TextGroup(("a",), task="classify", is_resent=True)
    assert pickle.loads(pickle.dumps(group)) == group


def test_a_group_without_a_deadline_has_none_on_another_machine() -> None:
    received = pickle.loads(pickle.dumps(TextGroup(("a",))))
    assert received == TextGroup(("a",))
    assert received.deadline_s == math.inf


def test_a_subset_keeps_the_keys_and_the_options() -> None:
    group = TextGroup(("a", "b", "c"), "query: ", False, "bulk", 8, (b"1", b"2", b"3"))
    subset = TextGroup(("a", "c"), "query: ", False, "bulk", 8, (b"1", b"3"))
    assert group.subset([0, 2]) == subset
    assert group.subset([0, 1, 2]) is group
    assert TextGroup(("a", "b")).subset([1]) == TextGroup(("b",))


def test_a_group_carries_its_trace_to_another_process() -> None:
    span = UnrecordedSpan(TraceContext(f"00-{'a' * 32}-{'b' * 16}-01", "vendor=1"))
    received = pickle.loads(pickle.dumps(TextGroup(("a",), span=span)))
    assert received.span.context == span.context
    assert received.span.context.headers() == {
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        "tracestate": "vendor=1",
    }
    assert (received.span.context.trace_id, received.span.context.span_id) == ("a" * 32, "b" * 16)
    assert TextGroup(("a", "b"), span=span).subset([1]).span is span
