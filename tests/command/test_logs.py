import json
import logging
import subprocess
import sys
from argparse import ArgumentParser

import pytest

from serve_app.command.logs import add_log_arguments, apply_log_arguments

#: Logs as a service does, in a process of its own.
LOG = """
import json, logging, sys
from serve_app.command.logs import configure_log
configure_log(json.loads(sys.argv[1]))
log = logging.getLogger("serve_app.test")
log.info("hidden")
log.warning("seen %d", 1, extra={"texts": 3})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def logged(config: object) -> list[str]:
    completed = subprocess.run(
        [sys.executable, "-c", LOG, json.dumps(config)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return completed.stderr.splitlines()


def parse(*arguments: str) -> dict[str, object]:
    parser = ArgumentParser()
    add_log_arguments(parser)
    config = {"logging_config": {"log_level": "WARNING", "enable_access_log": False}}
    return apply_log_arguments(config, parser.parse_args(arguments))


def test_options_replace_the_settings_of_the_file() -> None:
    assert parse()["logging_config"] == {"log_level": "WARNING", "enable_access_log": False}
    assert parse("--log-level", "info", "--log-format", "json")["logging_config"] == {
        "log_level": "INFO",
        "enable_access_log": False,
        "encoding": "JSON",
    }


def test_text_has_level_time_and_logger() -> None:
    lines = logged({})
    assert lines[0].startswith("WARNING ")
    assert lines[0].endswith(" serve_app.test -- seen 1")
    assert not any("hidden" in line for line in lines)
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_json_has_one_object_per_line_with_the_fields_of_a_message() -> None:
    lines = [
        json.loads(line)
        for line in logged({"logging_config": {"encoding": "JSON", "log_level": "INFO"}})
    ]
    assert [line["message"] for line in lines] == ["hidden", "seen 1", "failed"]
    assert (lines[1]["levelname"], lines[1]["texts"]) == ("WARNING", 3)
    assert "ZeroDivisionError" in lines[2]["exc_text"]


def test_json_has_the_keys_of_rays_formatter() -> None:
    from ray._common.formatters import JSONFormatter

    record = logging.makeLogRecord({"msg": "m", "levelname": "INFO", "texts": 3})
    expected = json.loads(JSONFormatter().format(record)).keys()
    (line,) = logged({"logging_config": {"encoding": "JSON"}})[:1]
    assert json.loads(line).keys() == expected


def test_an_unknown_level_is_a_usage_error() -> None:
    with pytest.raises(SystemExit):
        parse("--log-level", "loud")
