import pytest
import ray

from embedserve_client.command.main import main


@pytest.mark.parametrize("command", [["cache", "stats"], ["cache", "purge"], ["deploy"]])
def test_without_a_cluster_the_message_says_what_a_standalone_service_offers(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else the command sets it
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "No Ray cluster at 'auto'" in message
    assert "`--standalone`" in message
    assert "Traceback" not in message
