"""What a replica logs reaches Ray Serve's logger, at its own level."""

import logging
from collections.abc import Iterator

import pytest

from serve_app.deployments.replica_log import log_to_serve


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
