import socket
from pathlib import Path

import yaml

from serve_app.command.ports import free_port, port_in_use, with_free_ports

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "serve_config.yaml").read_text("utf-8"))


def test_a_second_service_gets_ports_and_files_of_its_own(tmp_path: Path) -> None:
    moved = with_free_ports(CONFIG, 8123, tmp_path)
    before, after = (c["controller_options"]["runtime_env"]["env_vars"] for c in (CONFIG, moved))
    assert moved["http_options"]["port"] == 8123
    assert CONFIG["http_options"]["port"] == 8000
    changed = {name for name in after if after[name] != before.get(name)}
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" in changed
    assert before.items() <= after.items()


def test_a_port_in_use_is_found(tmp_path: Path) -> None:
    config = with_free_ports(CONFIG, free_port(), tmp_path)
    env = config["controller_options"]["runtime_env"]["env_vars"]
    ports = [config["http_options"]["port"], int(env["RAY_SERVE_HAPROXY_STATS_PORT"])]
    assert port_in_use(config) is None
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            listener.listen()
            assert port_in_use(config) == port
