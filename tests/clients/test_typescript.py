"""The TypeScript client: type check, unit tests and package size."""

from tests.clients.node import PACKAGE, npm


def test_types_tests_and_size() -> None:
    npm(PACKAGE, "ci")
    report = npm(PACKAGE, "test")
    assert "\n# fail 0\n" in report
    assert "a killed standalone service is restarted\n" in report  # not skipped
    npm(PACKAGE, "run", "size")
