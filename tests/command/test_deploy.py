"""A roll-out with a controller that fails in all ways, and what its user reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedserve_client.command.main import main
from serve_app.command import deploy
from serve_app.command.deploy import roll_out
from serve_app.command.engine_trial import EngineTrial
from serve_app.command.import_check import check_import
from serve_app.errors import ConfigurationError, Unavailable

Details = dict[str, Any]
REASON = "Error:\nserve_app.errors.ConfigurationError: `device: cuda` needs a GPU."


def application(model: str) -> dict[str, Any]:
    args = {"model": {"name": model, "source": "hashing:8"}, "topology": "colocated"}
    return {"name": "e", "import_path": "serve_app.app:build", "args": args, "deployments": []}


class FakeController:
    """A controller whose applications change status with each description that is read."""

    def __init__(self, *statuses: str, running: str | None = "first") -> None:
        self._statuses = [*statuses]
        self._model = running
        self._status = "RUNNING"
        self._deployed_at = 1.0
        self.failures: dict[int, Exception] = {}  #: number of a call → what it raises
        self.calls = 0
        self.applied: list[str] = []

    def details(self) -> Details:
        self.calls += 1
        if self.calls in self.failures:
            raise self.failures[self.calls]
        if self.applied and self._statuses:
            self._status = self._statuses.pop(0)
        if self._status == "SUPERSEDED":
            self._status, self._deployed_at = "DEPLOYING", 99.0
        if self._model is None:
            return {"applications": {}}
        deployment = {"status": "DEPLOY_FAILED", "message": REASON, "replicas": []}
        return {
            "applications": {
                "e": {
                    "status": self._status,
                    "message": "",
                    "last_deployed_time_s": self._deployed_at,
                    "deployed_app_config": application(self._model),
                    "deployments": {"EmbedServer": deployment},
                }
            }
        }

    def apply(self, config: Mapping[str, Any]) -> None:
        self._model = config["applications"][0]["args"]["model"]["name"]
        self._deployed_at += 1
        self.applied.append(self._model)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def no_trial(*_: object) -> None:
    """A trial that finds nothing wrong."""


def run(
    controller: FakeController, timeout_s: float = 60, try_engines: EngineTrial = no_trial
) -> float:
    return roll_out(
        controller,
        {"applications": [application("second")]},
        timeout_s,
        lambda: {"a": {"CPU": 0.0}},
        try_engines,
    )


def test_a_good_configuration_is_deployed_once(capsys: pytest.CaptureFixture[str]) -> None:
    controller = FakeController("DEPLOYING", "DEPLOYING", "RUNNING")
    run(controller)
    assert controller.applied == ["second"]
    assert capsys.readouterr().out.count("deploying  EmbedServer") == 1  # a line for each change


def test_a_failed_configuration_is_replaced_by_the_one_before_with_the_reason() -> None:
    controller = FakeController("DEPLOYING", "DEPLOY_FAILED", "DEPLOYING", "RUNNING")
    with pytest.raises(ConfigurationError) as caught:
        run(controller)
    assert controller.applied == ["second", "first"]
    assert "`device: cuda` needs a GPU" in str(caught.value)
    assert "The configuration before it runs again." in str(caught.value)


def test_models_that_cannot_be_loaded_replace_no_replica() -> None:
    tried = []

    def fail(application: Mapping[str, Any], deployment: str, *_: object) -> None:
        tried.append((application["args"]["model"]["name"], deployment))
        raise ConfigurationError("The models can't be loaded.")

    controller = FakeController()
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        run(controller, try_engines=fail)
    assert controller.applied == []
    assert tried == [("second", "EmbedServer")]


def test_a_configuration_that_takes_too_long_is_replaced_by_the_one_before() -> None:
    class Hanging(FakeController):
        def apply(self, config: Mapping[str, Any]) -> None:
            super().apply(config)
            self._status = "DEPLOYING" if self._model == "second" else "RUNNING"

    controller = Hanging()
    with pytest.raises(Unavailable, match=r"not deployed within 0\.001 s") as caught:
        run(controller, timeout_s=0.001)
    assert controller.applied == ["second", "first"]
    assert "The configuration before it runs again." in str(caught.value)


def test_without_a_configuration_before_the_message_says_so() -> None:
    controller = FakeController("DEPLOY_FAILED", running=None)
    with pytest.raises(ConfigurationError, match="no configuration to return to"):
        run(controller)
    assert controller.applied == ["second"]


def test_a_configuration_before_that_does_not_run_either_is_told() -> None:
    controller = FakeController("DEPLOY_FAILED", "DEPLOY_FAILED", "DEPLOY_FAILED")
    with pytest.raises(ConfigurationError, match="The configuration before it doesn't run"):
        run(controller)
    assert controller.applied == ["second", "first"]


def test_the_deployment_of_somebody_else_is_left_alone() -> None:
    controller = FakeController("DEPLOYING", "SUPERSEDED")
    with pytest.raises(ConfigurationError, match="Another configuration was deployed meanwhile"):
        run(controller)
    assert controller.applied == ["second"]


def test_a_controller_that_restarts_is_waited_for() -> None:
    controller = FakeController("DEPLOYING", "RUNNING")
    controller.failures = {3: Unavailable("The controller doesn't answer.")}
    run(controller)
    assert controller.applied == ["second"]


def test_an_interrupted_command_says_that_the_roll_out_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    controller = FakeController("DEPLOYING")
    controller.failures = {3: KeyboardInterrupt()}  # type: ignore[dict-item]
    with pytest.raises(KeyboardInterrupt):
        run(controller)
    assert controller.applied == ["second"]
    assert "Ray goes on with the roll-out" in capsys.readouterr().out


def test_replicas_without_room_for_another_one_are_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Full(FakeController):
        def details(self) -> Details:
            details = super().details()
            deployments = details["applications"]["e"]["deployments"]
            deployments["EmbedServer"]["required_resources"] = {"CPU": 2}
            return details

    run(Full("RUNNING"))
    assert "no machine has room for another replica of EmbedServer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("serve_app.missing:build", "No module named 'serve_app.missing'"),
        ("serve_app.app:missing", "no attribute 'missing'"),
        ("nonsense", "import_path: nonsense"),
    ],
)
def test_code_that_cannot_be_imported_is_an_error_before_anything_is_sent(
    path: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match="can't be imported") as caught:
        check_import({"import_path": path})
    assert reason in str(caught.value)


def test_code_that_raises_at_its_import_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_release.py").write_text("1 / 0\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="ZeroDivisionError: division by zero"):
        check_import({"import_path": "broken_release:build"})


def test_code_of_a_runtime_environment_is_left_to_ray() -> None:
    check_import({"import_path": "missing:build", "runtime_env": {"pip": ["missing"]}})


@pytest.mark.parametrize("arguments", [["--timeout", "0"], ["--timeout", "soon"], ["--unknown"]])
def test_a_wrong_command_line_has_exit_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["deploy", *arguments])
    assert caught.value.code == 2


def test_a_file_that_is_wrong_is_an_error_before_the_cluster_is_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(address: str) -> None:
        raise AssertionError("The command connects.")

    monkeypatch.setattr(deploy, "connect", connect)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else the command sets it
    file = tmp_path / "config.yaml"
    for args, message in {
        "{enginee: torch}": "enginee: there is no such setting",
        "{}": "serve_app.missing",
    }.items():
        file.write_text(
            f"applications: [{{name: e, import_path: 'serve_app.missing:build', args: {args}}}]\n"
            "http_options: {host: 127.0.0.1}\n",
            "utf-8",
        )
        assert main(["deploy", str(file)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
