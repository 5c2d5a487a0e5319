"""`embedserve serve --standalone`: the service in this process, without Ray."""

import argparse
import os
import socket
import sys
import threading

from serve_app import standalone
from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.command.config_file import (
    http_address,
    http_url,
    read_config,
    standalone_settings,
)
from serve_app.command.logs import apply_log_arguments, configure_log
from serve_app.command.prepare import prepare_models
from serve_app.command.process_tree import stop_cache_servers
from serve_app.command.progress import print_ready, print_step
from serve_app.command.service_process import StartupError
from serve_app.command.supervision import terminate_at_eof
from serve_app.config.fallback import check_one_process
from serve_app.errors import ConfigurationError
from serve_app.standalone import StandaloneService

if sys.platform == "win32":
    from asyncio import run
else:
    from uvloop import run

#: How long the interpreter may take to exit after the service has stopped.
_EXIT_TIMEOUT_S = 2.0


def serve_standalone(arguments: argparse.Namespace) -> int:
    """Runs the service until SIGINT or SIGTERM, and returns the exit status.

    Args:
        arguments: those of `embedserve serve`.

    Raises:
        ConfigurationError: the configuration is not valid.
        StartupError: the port is in use.
    """
    config, application = read_config(arguments.config, ray=False)
    try:
        check_one_process(application.served_models, "`--standalone`")
    except ValueError as error:
        raise ConfigurationError(f"{arguments.config}: {error}") from None
    settings = standalone_settings(config)
    host, port = http_address(config)
    require_keys_beyond_loopback(host, settings.access)
    listener = _listen(host, port if arguments.port is None else arguments.port)
    configure_log(apply_log_arguments(config, arguments))
    url = http_url(host, listener.getsockname()[1])
    if arguments.until_eof:
        terminate_at_eof()
    try:
        with listener:
            service = StandaloneService(
                application, prepare_models(application), settings, name=f"standalone/{url}"
            )
            run(
                standalone.run(
                    service,
                    listener,
                    drain_timeout_s=arguments.drain_timeout,
                    on_ready=lambda: print_ready(url),
                )
            )
    finally:
        # In a container, everything else is killed when this process ends.
        stop_cache_servers({os.getpid()})
    print_step("stopped", "the process ends")
    _exit_soon()
    return 0


def _exit_soon() -> None:
    """Ends the process even if a batch hangs, whose thread the interpreter waits for."""
    timer = threading.Timer(_EXIT_TIMEOUT_S, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=family, backlog=2048, dualstack_ipv6=both)
    except OSError as error:
        raise StartupError(
            f"Can't listen on port {port} ({error}). Stop the process that listens on it, or start "
            f"this service on another: `embedserve serve --standalone --port {port + 1}`."
        ) from None
