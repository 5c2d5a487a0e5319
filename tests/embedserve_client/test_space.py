import pytest

from embedserve_client.errors import SpaceMismatch
from embedserve_client.space import Space, SpaceGuard


@pytest.mark.parametrize(
    ("first", "second", "mixes"),
    [
        ("f-fp32", "f-fp32", True),
        ("f-fp32", "f-bf16", True),
        ("f-fp16", "f-bf16+float16", True),
        ("f-int8", "f-int8", True),
        ("f-fp32", "f-int8", False),
        ("f-fp32", "g-fp32", False),
        ("a-b-fp32", "a-c-fp32", False),
    ],
)
def test_which_spaces_may_meet(first: str, second: str, mixes: bool) -> None:
    one, other = Space.parse(first), Space.parse(second)
    assert one.mixes_with(other) is mixes
    assert other.mixes_with(one) is mixes
    assert str(one) == first


@pytest.mark.parametrize("text", ["", "f", "-fp32", "f-"])
def test_what_is_no_space_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a space"):
        Space.parse(text)


def test_an_unknown_space_is_a_space_of_its_own() -> None:
    guard = SpaceGuard()
    guard.check(None)
    guard.check(None)
    with pytest.raises(SpaceMismatch):
        guard.check(Space.parse("f-fp32"))
