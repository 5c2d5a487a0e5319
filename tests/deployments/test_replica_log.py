"""What a replica logs reaches Ray Serve's logger, at its own level."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.deployments.replica_log import log_to_serve

#: Logs as a replica does that Serve has set up with the settings of the configurations.
REPLICA = """
import logging, sys
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
configure_component_logger(
    component_name="EmbedServer",
    component_id="r",
    component_type=ServeComponentType.REPLICA,
    logging_config=LoggingConfig(
        encoding=sys.argv[1], log_level="WARNING", logs_dir=sys.argv[2], enable_access_log=False
    ),
    max_bytes=0,
    backup_count=0,
)
from serve_app.deployments.replica_log import log_to_serve
log_to_serve()
from serve_app.spans import TraceContext, UnrecordedSpan, current
with current(UnrecordedSpan(TraceContext("00-%s-%s-01" % ("a" * 32, "b" * 16)))):
    logging.getLogger("serve_app.cache").warning("the cache is gone")
logging.getLogger("serve_app.cache").info("hidden")
requests = logging.getLogger("serve_app.requests")
requests.setLevel(logging.INFO)
requests.info("POST /v1/embeddings 200", extra={"path": "/v1/embeddings", "status": 200})
"""


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def serve_records() -> Iterator[Records]:
    """Stands for the log file of the replica, at the level WARNING."""
    logger, records = logging.getLogger("ray.serve"), Records()
    level = logger.level
    logger.addHandler(records)
    logger.setLevel(logging.WARNING)
    yield records
    logger.removeHandler(records)
    logger.setLevel(level)


def test_warnings_keep_their_level_and_are_written_once(serve_records: Records) -> None:
    log_to_serve()
    log_to_serve()  # another deployment in the same process
    logger = logging.getLogger("serve_app.cache")
    logger.warning("the cache is gone")
    logger.info("the cache is back")
    assert serve_records.messages == ["WARNING the cache is gone"]


def test_a_lower_level_of_serve_applies_at_once(serve_records: Records) -> None:
    log_to_serve()
    logging.getLogger("ray.serve").setLevel(logging.INFO)
    logging.getLogger("serve_app.cache").info("the cache is back")
    assert serve_records.messages == ["INFO the cache is back"]


def test_the_request_log_passes_at_every_level(serve_records: Records) -> None:
    log_to_serve()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    requests = logging.getLogger("serve_app.requests")
    requests.setLevel(logging.INFO)
    requests.info("POST /v1/embeddings")
    assert serve_records.messages == ["INFO POST /v1/embeddings"]


@pytest.mark.parametrize("encoding", ["TEXT", "JSON"])
def test_serve_writes_both_to_the_file_of_the_replica(tmp_path: Path, encoding: str) -> None:
    subprocess.run([sys.executable, "-c", REPLICA, encoding, tmp_path], check=True, timeout=120)
    (file,) = tmp_path.iterdir()
    first, second = file.read_text("utf-8").splitlines()
    if encoding == "JSON":
        lines = [json.loads(line) for line in (first, second)]
        assert [line["message"] for line in lines] == [
            "the cache is gone",
            "POST /v1/embeddings 200",
        ]
        assert (lines[0]["levelname"], lines[1]["levelname"]) == ("WARNING", "INFO")
        assert (lines[0]["trace_id"], lines[0]["span_id"]) == ("a" * 32, "b" * 16)
        assert "trace_id" not in lines[1]
        assert (lines[1]["path"], lines[1]["status"]) == ("/v1/embeddings", 200)
        assert lines[1]["deployment"] == "EmbedServer"
    else:
        assert first.startswith("WARNING ")
        assert first.endswith("the cache is gone")
        assert second.endswith("POST /v1/embeddings 200")
