"""The configuration file of a service: its path on the command line, its content, its checks."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from serve_app.access.entrance import require_keys_beyond_loopback
from serve_app.access.keys import KeyRing
from serve_app.config import (
    TOKEN_POLICY,
    TOPOLOGIES,
    USER_CONFIGS,
    AccessSettings,
    AppConfig,
    EmbedServerSettings,
    PolicySettings,
    RequestSettings,
    deployment_names,
    user_config_type,
)
from serve_app.config.section import describe_errors
from serve_app.errors import ConfigurationError

_LOCAL_CONFIG = Path("serve_config.yaml")
_PACKAGE = Path(__file__).parents[1]
#: Docker Compose's file, which is next to the configurations.
_COMPOSE = "compose"
_PACKAGED_CONFIGS = {
    file.stem: file
    for file in sorted((_PACKAGE / "configs").glob("*.yaml"))
    if file.stem != _COMPOSE
}
#: HAProxy, which the default configuration uses, has a binary for Linux only.
_DEFAULT_CONFIG = (
    _PACKAGE / "serve_config.yaml" if sys.platform == "linux" else _PACKAGED_CONFIGS["portable"]
)


def add_config_argument(parser: argparse.ArgumentParser, *, flag: str | None = None) -> None:
    """Adds the path of the configuration file, as an option if `flag` names one."""
    name: dict[str, Any] = {"nargs": "?"} if flag is None else {"metavar": "FILE"}
    parser.add_argument(
        flag or "config",
        **name,
        type=config_path,
        default=_LOCAL_CONFIG if _LOCAL_CONFIG.is_file() else _DEFAULT_CONFIG,
        help="a Ray Serve configuration file, or the name of a packaged one: "
        f"{', '.join(_PACKAGED_CONFIGS)} (default: serve_config.yaml in the current directory, "
        "otherwise the packaged one for this platform)",
    )


def config_path(text: str) -> Path:
    """Returns the file that a command line names: a path, or the name of a packaged one."""
    path = Path(text)
    return path if path.is_file() else _PACKAGED_CONFIGS.get(text, path)


def read_config(path: Path, *, ray: bool = True) -> tuple[dict[str, Any], AppConfig]:
    """Returns the content of a configuration file, and the `args` of its application.

    Args:
        path: the file.
        ray: check the settings of Ray Serve as well, which imports Ray.

    Raises:
        ConfigurationError: the file can't be read, or a setting is not valid.
    """
    from pydantic import ValidationError

    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if ray:
            from ray.serve.schema import ServeDeploySchema

            ServeDeploySchema.model_validate(config)
        if not isinstance(config, dict) or not config.get("applications"):
            raise ConfigurationError("`applications` is empty")
        application = config["applications"][0]
        args = AppConfig.parse(application.get("args"))
        for deployment in application.get("deployments", []):
            _check_deployment(args, deployment)
        return config, args
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"Can't read {path} ({error}). Pass the path of a file, or the name of a packaged "
            f"configuration: {', '.join(_PACKAGED_CONFIGS)}."
        ) from None
    except ValidationError as error:
        fault = describe_errors(error)
    except yaml.YAMLError as error:
        fault = " ".join(str(error).split())
    except ConfigurationError as error:
        fault = str(error)
    raise ConfigurationError(f"{path} is not a valid configuration: {fault}")


def _check_deployment(args: AppConfig, deployment: Mapping[str, Any]) -> None:
    name = deployment["name"]
    settings = user_config_type(args, name)
    if settings is None:
        raise ConfigurationError(
            f"deployments: {name!r} is no deployment of the application, which has "
            f"{', '.join(deployment_names(args))}. Correct the name, or set `deployment: {name}` "
            "in the entry of a model"
        )
    settings.parse(deployment.get("user_config"), f"{name}: user_config")
    scaling = deployment.get("autoscaling_config") or {}
    of_models = (*args.engine_deployments, *args.provider_deployments)
    if scaling.get("min_replicas") == 0 and (args.topology == "colocated" or name not in of_models):
        raise ConfigurationError(
            f"{name}: with `min_replicas: 0` nothing would take the request that starts a replica. "
            "Set `min_replicas: 1`. Deployments that run models may scale to zero, with `topology: "
            "separate`"
        )
    policy = scaling.get("policy") or {}
    if policy.get("policy_function") == TOKEN_POLICY:
        location = f"{name}: autoscaling_config.policy.policy_kwargs"
        PolicySettings.parse(policy.get("policy_kwargs"), location)


def check_access(config: Mapping[str, Any]) -> None:
    """Raises the error that each replica would raise later.

    Raises:
        ConfigurationError: see `require_keys_beyond_loopback`.
    """
    if config.get("proxy_location") == "Disabled":
        return
    application = AppConfig.parse(config["applications"][0].get("args"))
    require_keys_beyond_loopback(http_address(config)[0], _access_settings(config, application))


def unknown_canary_keys(config: Mapping[str, Any], application: AppConfig) -> list[str]:
    """Returns what to tell of canaries that name API keys which don't exist; none gets an answer.

    They may exist later, because the service reads the file of keys again, or elsewhere: nothing is
    told if the keys can't be read here.
    """
    canaries = {a.name: a.canary.keys for a in application.aliases if a.canary.keys}
    if not canaries:
        return []
    ring, access = KeyRing(), _access_settings(config, application)
    try:
        ring.apply(access)
    except ConfigurationError:
        return []
    known = sorted({key.name for key in ring.known})
    return [
        f"the canary of the alias {name!r} is for {', '.join(unknown)}, and no API key has such a "
        f"name: correct `canary.keys`, or create the key. Known: {', '.join(known) or 'none'}"
        for name, keys in canaries.items()
        if (unknown := [key for key in keys if key not in known])
    ]


def _access_settings(config: Mapping[str, Any], application: AppConfig) -> AccessSettings:
    name = TOPOLOGIES[application.topology][0]
    settings = USER_CONFIGS[name].parse(_user_configs(config).get(name))
    assert isinstance(settings, RequestSettings)
    return settings.access


def http_address(config: Mapping[str, Any]) -> tuple[str, int]:
    """Returns host and port of HTTP, with Ray's defaults."""
    http = config.get("http_options", {})
    return http.get("host", "0.0.0.0"), http.get("port", 8000)


def http_url(host: str, port: int) -> str:
    """Returns the URL under which this machine reaches a service that listens on `host`."""
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def standalone_settings(config: Mapping[str, Any]) -> EmbedServerSettings:
    """Returns the settings of a service in one process, from a file of any topology."""
    by_name = _user_configs(config)
    if "EmbedServer" in by_name:
        return EmbedServerSettings.parse(by_name["EmbedServer"])
    queues = by_name.get("Embedder") or by_name.get("Providers") or {}
    merged = {**(by_name.get("Ingress") or {}), **queues}
    merged.pop("max_in_flight_calls", None)
    return EmbedServerSettings.parse(merged)


def _user_configs(config: Mapping[str, Any]) -> dict[str, Any]:
    deployments = config["applications"][0].get("deployments", [])
    return {deployment["name"]: deployment.get("user_config") for deployment in deployments}
