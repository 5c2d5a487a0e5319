"""The TypeScript client by itself: its types, its own tests, and what it weighs."""

from tests.clients.node import PACKAGE, npm


def test_types_tests_and_size() -> None:
    npm(PACKAGE, "ci")
    told = npm(PACKAGE, "test")
    assert "\n# fail 0\n" in told
    npm(PACKAGE, "run", "size")
