"""Which waiting calls move to other replicas."""

from collections import Counter

from serve_app.scheduler.rebalancing import SentCall, choose_moves
from serve_app.types import Lane


def sent(
    replica: str, count: int, tokens: int = 100, lane: Lane = "interactive"
) -> list[SentCall[str, str]]:
    return [SentCall(f"{replica} {lane} {i:03}", replica, lane, tokens) for i in range(count)]


def moved(calls: list[SentCall[str, str]], **tokens_per_s: float) -> list[tuple[str, str]]:
    return [(call.call, target) for call, target in choose_moves(calls, tokens_per_s)]


def test_new_replicas_get_their_shares_of_what_waits() -> None:
    moves = moved(sent("old", 300), old=1000, new_1=1000, new_2=1000)
    to = Counter(target for _, target in moves)
    assert 90 <= to["new_1"] <= 105
    assert 90 <= to["new_2"] <= 105


def test_no_call_starts_after_one_that_was_sent_later() -> None:
    """Old calls and later ones are spread alike: none of the old ones waits for all others."""
    calls = sent("old", 300)
    stay = {call.call for call in calls} - {call for call, _ in moved(calls, old=1000, new=1000)}
    late_third = {call.call for call in calls[200:]}
    assert 45 <= len(stay & late_third) <= 55


def test_moves_are_in_the_order_of_sending() -> None:
    calls = sent("old", 100)
    moves = [call for call, _ in moved(calls, old=1000, new=1000)]
    assert moves == sorted(moves)


def test_a_fast_replica_gets_more() -> None:
    moves = moved(sent("old", 300), old=1000, gpu=5000)
    assert 235 <= len(moves) <= 265


def test_calls_stay_for_a_gain_of_less_than_a_second() -> None:
    calls = sent("a", 15) + sent("b", 8)
    assert moved(calls, a=1000, b=1000) == []


def test_what_is_being_computed_stays() -> None:
    assert moved(sent("old", 1, tokens=10_000), old=1000, new=1000) == []


def test_queries_move_before_documents_that_were_sent_earlier() -> None:
    bulk, queries = sent("old", 20, 1000, "bulk"), sent("old", 30)
    moves = [call for call, _ in moved([*bulk, *queries], old=1000, new=1000)]
    assert moves[0].startswith("old interactive")
    assert any("bulk" in call for call in moves)


def test_documents_do_not_make_queries_move() -> None:
    bulk, queries = sent("old", 1, 2_000, "bulk"), sent("old", 3)
    assert moved([*bulk, *queries], old=1000, busy=1000) == []


def test_nothing_moves_without_replicas_or_calls() -> None:
    assert moved([]) == []
    assert moved([], old=1000, new=1000) == []
