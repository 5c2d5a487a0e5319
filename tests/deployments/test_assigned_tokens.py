"""Which replica a call goes to."""

import pytest

from serve_app.deployments.assigned_tokens import AssignedTokens

EQUAL = {"a": 100.0, "b": 100.0}


def test_idle_replicas_take_turns() -> None:
    tokens = AssignedTokens[str]()
    first = [tokens.rank(EQUAL, "interactive")[0] for _ in range(4)]
    assert sorted(first[:2]) == ["a", "b"]
    assert first[2:] == first[:2]


def test_the_replica_with_fewer_tokens_is_first_however_many_calls_it_has() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("documents", "a", "interactive", 5000)
    for i in range(20):
        tokens.assign(f"query {i}", "b", "interactive", 10)
    assert tokens.rank(EQUAL, "interactive") == ["b", "a"]


def test_the_end_of_a_call_is_known_at_once() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("x", "a", "interactive", 5000)
    tokens.assign("y", "b", "interactive", 10)
    tokens.release("x")
    assert tokens.rank(EQUAL, "interactive") == ["a", "b"]


def test_a_call_that_is_routed_again_counts_once() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("x", "a", "interactive", 50)
    tokens.assign("x", "b", "interactive", 50)
    assert tokens.rank(EQUAL, "interactive") == ["a", "b"]
    tokens.release("x")
    tokens.release("x")
    tokens.assign("y", "a", "interactive", 1)
    assert tokens.rank(EQUAL, "interactive") == ["b", "a"]


def test_a_replica_that_is_twice_as_fast_gets_twice_as_much() -> None:
    tokens = AssignedTokens[str]()
    speeds = {"gpu": 200.0, "cpu": 100.0}
    chosen = []
    for i in range(30):
        replica = tokens.rank(speeds, "bulk")[0]
        tokens.assign(str(i), replica, "bulk", 10)
        chosen.append(replica)
    assert chosen.count("gpu") == 20


def test_an_unknown_speed_is_the_mean_of_the_known_ones() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("x", "new", "bulk", 100)
    tokens.assign("y", "fast", "bulk", 100)
    speeds = {"new": 0.0, "fast": 300.0, "slow": 100.0}
    assert tokens.rank(speeds, "bulk") == ["slow", "fast", "new"]


def test_queries_wait_for_one_batch_of_bulk_texts_at_most() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("night", "a", "bulk", 100_000)
    tokens.assign("queries", "b", "interactive", 50)  # half a second
    assert tokens.rank(EQUAL, "interactive") == ["a", "b"]
    assert tokens.rank(EQUAL, "bulk") == ["b", "a"]


def test_a_replica_that_is_gone_takes_its_calls_along() -> None:
    tokens = AssignedTokens[str]()
    tokens.assign("x", "a", "bulk", 10)
    tokens.keep(["b"])
    tokens.release("x")
    tokens.assign("y", "b", "bulk", 1)
    assert tokens.rank(EQUAL, "bulk") == ["a", "b"]


@pytest.mark.parametrize(("elapsed_s", "order"), [(899, ["b", "a"]), (901, ["a", "b"])])
def test_a_call_that_never_ends_is_forgotten(elapsed_s: float, order: list[str]) -> None:
    now_s = 0.0
    tokens = AssignedTokens[str](clock=lambda: now_s)
    tokens.assign("lost", "a", "bulk", 100)
    now_s = elapsed_s
    tokens.assign("x", "b", "bulk", 10)
    assert tokens.rank(EQUAL, "bulk") == order


@pytest.mark.parametrize(("elapsed_s", "order"), [(14, ["b", "a"]), (16, ["a", "b"])])
def test_a_replica_that_could_not_be_reached_is_avoided_for_a_while(
    elapsed_s: float, order: list[str]
) -> None:
    now_s = 0.0
    tokens = AssignedTokens[str](lambda: now_s)
    tokens.assign("x", "b", "interactive", 1000)
    tokens.avoid("a")
    now_s = elapsed_s
    assert tokens.rank(EQUAL, "interactive") == order


def test_the_only_replica_is_chosen_even_if_it_could_not_be_reached() -> None:
    tokens = AssignedTokens[str]()
    tokens.avoid("a")
    assert tokens.rank({"a": 100.0}, "bulk") == ["a"]


def test_calls_move_to_an_idle_replica_but_not_to_one_that_cannot_be_reached() -> None:
    tokens = AssignedTokens[str]()
    for i in range(40):
        tokens.assign(str(i), "a", "interactive", 10)
    assert 15 <= len(tokens.choose_moves(EQUAL)) <= 20
    tokens.avoid("b")
    assert tokens.choose_moves(EQUAL) == []


def test_calls_on_a_replica_that_cannot_be_reached_are_left_to_ray() -> None:
    tokens = AssignedTokens[str]()
    for i in range(40):
        tokens.assign(str(i), "a", "interactive", 10)
    tokens.avoid("a")
    assert tokens.choose_moves({**EQUAL, "c": 0.0}) == []


def test_no_call_moves_while_no_speed_is_known() -> None:
    tokens = AssignedTokens[str]()
    for i in range(40):
        tokens.assign(str(i), "a", "interactive", 10)
    assert tokens.choose_moves({"a": 0.0, "b": 0.0}) == []
    assert tokens.choose_moves({"a": 100.0, "b": 0.0}) != []
