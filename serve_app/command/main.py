"""What the service adds to the command `embedserve`. Thin: each calls what does the work."""

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from embedserve_client.command.main import main
from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.command import cache as cache_command
from serve_app.command import key as key_command
from serve_app.config import USER_CONFIGS, AppConfig, IngressSettings, settings_markdown
from serve_app.errors import ConfigurationError, EmbedServeError
from serve_app.model_prep.engine_selection import select_engine

EXAMPLES = """\
  embedserve serve                         serve what serve_config.yaml says, until Ctrl-C
  embedserve serve configs/gpu.yaml        serve another configuration
  embedserve serve --port 8001             a second service on this machine
  embedserve prepare                       check the model, choose its engine; for an image build
  embedserve cache warm texts.jsonl        embed a file's texts, so that they are known
  embedserve cache stats                   what is known, and how often that helped
  embedserve key new alice                 make an API key, and its entry for the configuration
  embedserve settings                      every setting, its default and what it does
"""
#: Errors whose words are for people.
ERRORS = (EmbedServeError,)
#: What is served where nobody says otherwise and no such file lies at hand.
_PACKAGED = Path(__file__).parents[1] / "serve_config.yaml"
_AT_HAND = Path("serve_config.yaml")


def add_commands(commands: Any) -> None:
    """Adds what the service has to the command's own parser."""
    serve = commands.add_parser("serve", help="start the service and wait for Ctrl-C")
    _add_config(serve)
    serve.add_argument("--port", type=int, help="listen here instead of where the file says")
    serve.add_argument("--verbose", action="store_true", help="show all that Ray prints")
    serve.add_argument(
        "--until-eof",
        action="store_true",
        help="end when standard input does, so as not to outlive the program that started it",
    )
    serve.set_defaults(run=_serve)

    prepare = commands.add_parser("prepare", help="check the model's files and choose its engine")
    _add_config(prepare)
    prepare.set_defaults(run=_prepare)

    cache_command.add_commands(commands)
    key_command.add_commands(commands)

    settings = commands.add_parser("settings", help="print all settings as Markdown tables")
    settings.set_defaults(run=_settings)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=_AT_HAND if _AT_HAND.is_file() else _PACKAGED,
        help="a Ray Serve configuration file (default: serve_config.yaml here, or the one that "
        "came with the service)",
    )


def _serve(arguments: argparse.Namespace) -> int:
    from serve_app.command.serve import ServiceProcess, StartupError, port_in_use, with_free_ports

    config, application = _read(arguments.config)
    _check_entrance(config)
    _make_ready(application)
    with tempfile.TemporaryDirectory(prefix="embedserve-") as scratch:
        if arguments.port is not None:
            config = with_free_ports(config, arguments.port, Path(scratch))
        taken = port_in_use(config)
        if taken is not None:
            return _fail(
                f"Port {taken} is in use. Stop what listens there, or start beside it: "
                f"`embedserve serve --port {config.get('http_options', {}).get('port', 8000) + 1}`."
            )
        _catch_signals()
        if arguments.until_eof:
            threading.Thread(target=_end_with_input, daemon=True).start()
        launch = ServiceProcess(config, verbose=arguments.verbose)
        try:
            launch.start()
            for doing in launch.wait_until_ready():
                _say("starting", doing)
            _show_ready(launch.url)
            return launch.wait()
        except StartupError as error:
            return _fail(f"{error}\nRay's logs: /tmp/ray/session_latest/logs/serve")
        except KeyboardInterrupt:
            _say("stopping", "a few seconds   (Ctrl-C again kills it)")
            return 0
        finally:
            launch.stop()
            _say("stopped", "nothing is left running")


def _prepare(arguments: argparse.Namespace) -> int:
    _, application = _read(arguments.config)
    _make_ready(application)
    return 0


def _settings(arguments: argparse.Namespace) -> int:
    print(settings_markdown(), end="")
    return 0


def _read(path: Path) -> tuple[dict[str, Any], AppConfig]:
    """A configuration file and the `args` of its application, both checked."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        application = ServeDeploySchema.model_validate(config).applications[0]
        for deployment in config["applications"][0].get("deployments", []):
            if deployment["name"] in USER_CONFIGS:
                settings = USER_CONFIGS[deployment["name"]]
                settings.model_validate(deployment.get("user_config") or {})
        return config, AppConfig.model_validate(application.args)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Can't read {path} ({error}). Run this in the project's folder, or name a file."
        ) from None
    except (yaml.YAMLError, ValidationError, IndexError) as error:
        raise ConfigurationError(f"{path} is not a valid configuration: {error}") from None


def _check_entrance(config: dict[str, Any]) -> None:
    """Refuses at once what each Ingress would refuse, in the same words.

    Raises:
        ConfigurationError: see `require_keys_beyond_loopback`.
    """
    if config.get("proxy_location") == "Disabled":
        return
    deployments = config["applications"][0].get("deployments", [])
    given = [d.get("user_config") for d in deployments if d["name"] == "Ingress"]
    settings = IngressSettings.model_validate((given and given[0]) or {})
    require_keys_beyond_loopback(
        config.get("http_options", {}).get("host", "0.0.0.0"), settings.access
    )


def _catch_signals() -> None:
    """Makes Ctrl-C and `kill` end the service alike, even where SIGINT came in ignored.

    The first ends the service, the second its waiting; nothing interrupts the cleaning up.
    """
    left = iter(range(2))

    def interrupt(number: int, frame: FrameType | None) -> None:
        if next(left, None) is not None:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


def _end_with_input() -> None:
    while os.read(0, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _make_ready(application: AppConfig) -> None:
    """Chooses the engine, as the application will, and tells what will be served."""
    _say("preparing", "the model, where its engine asks for that, once (half a minute)")
    choice = select_engine(application)
    spec, parity = choice.spec, choice.parity
    _say("model", f"{spec.name}, {spec.dim} dimensions, {spec.max_tokens} tokens")
    if spec.weights_sha256 is not None:
        _say("weights", f"SHA-256 {spec.weights_sha256[:16]}…")
    _say("space", spec.space_id)
    for refusal in choice.refused:
        _say("refused", refusal)
    _say("engine", f"{choice.config.engine} at {choice.config.precision}")
    if parity is not None:
        _say("parity", f"cosine {parity.cosine_min:.7f} at the least, over {parity.texts} texts")


def _show_ready(url: str) -> None:
    _say("ready", f"{url}   (Ctrl-C stops it)")
    print(
        f"\n  curl {url}/v1/embeddings -H 'Content-Type: application/json' \\\n"
        """       -d '{"input": "Hello, world"}'\n""",
        flush=True,
    )


def _say(what: str, text: str) -> None:
    print(f"{what:>9}  {text}", flush=True)


def _fail(message: str) -> int:
    print(f"embedserve: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
