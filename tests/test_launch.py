import socket
from pathlib import Path

import pytest
import yaml

from serve_app.launch import Launch, LaunchFailed, beside, free_port, taken_port

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "serve_config.yaml").read_text("utf-8"))


def test_a_second_service_keeps_out_of_the_firsts_way(tmp_path: Path) -> None:
    moved = beside(CONFIG, 8123, tmp_path)
    before, after = (c["controller_options"]["runtime_env"]["env_vars"] for c in (CONFIG, moved))
    assert moved["http_options"]["port"] == 8123
    assert CONFIG["http_options"]["port"] == 8000
    changed = {name for name in after if after[name] != before.get(name)}
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" in changed
    assert before.items() <= after.items()


def test_a_taken_port_is_seen(tmp_path: Path) -> None:
    config = beside(CONFIG, free_port(), tmp_path)
    env = config["controller_options"]["runtime_env"]["env_vars"]
    ports = [config["http_options"]["port"], int(env["RAY_SERVE_HAPROXY_STATS_PORT"])]
    assert taken_port(config) is None
    for port in ports:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            assert taken_port(config) == port


def test_a_child_that_ends_is_told_with_its_last_words() -> None:
    launch = Launch({"http_options": {"port": free_port()}, "not a setting": 1})
    launch.start()
    try:
        with pytest.raises(LaunchFailed, match="not a setting"):
            list(launch.wait_until_ready())
    finally:
        launch.stop()
