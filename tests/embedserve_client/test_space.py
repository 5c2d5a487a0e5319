import pytest

from embedserve_client.errors import SpaceMismatchError
from embedserve_client.space import Space, SpaceGuard


@pytest.mark.parametrize(
    ("first", "second", "comparable"),
    [
        ("f-fp32", "f-fp32", True),
        ("f-fp32", "f-bf16", True),
        ("f-fp16", "f-bf16+float16", True),
        ("f-bf16+int8.1a2b", "f-bf16+int8.1a2b", True),
        ("f-bf16+int8.1a2b", "f-bf16", False),
        ("f-int8", "f-int8", True),
        ("f-fp32", "f-int8", False),
        ("f-fp32", "g-fp32", False),
        ("a-b-fp32", "a-c-fp32", False),
    ],
)
def test_comparable_spaces(first: str, second: str, comparable: bool) -> None:
    left, right = Space.parse(first), Space.parse(second)
    assert left.is_comparable_to(right) is comparable
    assert right.is_comparable_to(left) is comparable
    assert str(left) == first


@pytest.mark.parametrize("text", ["", "f", "-fp32", "f-"])
def test_malformed_space_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="isn't a space"):
        Space.parse(text)


def test_unknown_space_is_only_comparable_to_itself() -> None:
    guard = SpaceGuard()
    guard.check(None)
    guard.check(None)
    with pytest.raises(SpaceMismatchError):
        guard.check(Space.parse("f-fp32"))
