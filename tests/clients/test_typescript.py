"""The TypeScript client: type check, unit tests and package size."""

from tests.clients.node import PACKAGE, npm


def test_types_tests_and_size() -> None:
    npm(PACKAGE, "ci")
    report = npm(PACKAGE, "test")
    assert "\n# fail 0\n" in report
    npm(PACKAGE, "run", "size")
