"""All settings of the service: one typed tree with defaults, bounds and descriptions.

There are three kinds, which differ in the cost of a change. `AppConfig` is the `args` of the
application: a change restarts all replicas. `PolicySettings` are those of the autoscaling policy.
The other `*Settings` classes are the `user_config` of one deployment each: Ray passes a change to
the running replicas. `embedserve settings` prints the tables of `docs/settings.md` from this tree.
"""

from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from serve_app.config.access import AccessSettings, ApiKey
from serve_app.config.alias import AliasConfig, CanarySettings, ShadowSettings
from serve_app.config.application import CACHE_SERVER, AppConfig, CacheConfig
from serve_app.config.autoscaling import TOKEN_POLICY, PolicySettings
from serve_app.config.deployments import (
    CacheLookupSettings,
    EmbedderSettings,
    EmbedServerSettings,
    IngressSettings,
    ProvidersSettings,
    QueueSettings,
    RequestSettings,
)
from serve_app.config.model import EMBEDDER, MINILM, PROVIDERS, EngineSettings, ModelConfig
from serve_app.config.provider import ProviderSettings
from serve_app.config.section import Section
from serve_app.config.tracing import TracingConfig

__all__ = [
    "CACHE_SERVER",
    "EMBEDDER",
    "MINILM",
    "PROVIDERS",
    "SECTIONS",
    "TOKEN_POLICY",
    "TOPOLOGIES",
    "USER_CONFIGS",
    "AccessSettings",
    "AliasConfig",
    "ApiKey",
    "AppConfig",
    "CacheConfig",
    "CacheLookupSettings",
    "CanarySettings",
    "EmbedServerSettings",
    "EmbedderSettings",
    "EngineSettings",
    "IngressSettings",
    "ModelConfig",
    "PolicySettings",
    "ProviderSettings",
    "ProvidersSettings",
    "QueueSettings",
    "RequestSettings",
    "ShadowSettings",
    "TracingConfig",
    "deployment_names",
    "settings_markdown",
    "user_config_type",
]

#: Deployment name → the class of its `user_config`. Deployments that models name have that of the
#: Embedder or of Providers; see `user_config_type`.
USER_CONFIGS: dict[str, type[Section]] = {
    "Ingress": IngressSettings,
    "CacheLookup": CacheLookupSettings,
    "Embedder": EmbedderSettings,
    "Providers": ProvidersSettings,
    "EmbedServer": EmbedServerSettings,
}
#: Topology → its deployments, if no model names one. The first one takes the HTTP requests.
TOPOLOGIES: dict[str, tuple[str, ...]] = {
    "separate": ("Ingress", "CacheLookup", "Embedder"),
    "colocated": ("EmbedServer",),
}
#: Location in the YAML file → the class of the section.
SECTIONS: dict[str, type[Section]] = {
    AppConfig.location: AppConfig,
    **{section.location: section for section in USER_CONFIGS.values()},
    PolicySettings.location: PolicySettings,
}


def deployment_names(config: AppConfig) -> tuple[str, ...]:
    """Returns the application's deployments. The first one takes the HTTP requests."""
    if config.topology == "colocated":
        return TOPOLOGIES["colocated"]
    *before, _ = TOPOLOGIES["separate"]
    return (*before, *config.engine_deployments, *config.provider_deployments)


def user_config_type(config: AppConfig, deployment: str) -> type[Section] | None:
    """Returns the class of a deployment's `user_config`; None: it isn't one of the service."""
    if deployment in USER_CONFIGS:
        return USER_CONFIGS[deployment]
    if deployment in config.provider_deployments:
        return ProvidersSettings
    return EmbedderSettings if deployment in config.engine_deployments else None


#: In place of a table that would repeat two others.
_EMBED_SERVER_SETTINGS = (
    "All settings of the Ingress except `max_in_flight_calls`, and all settings of the Embedder."
)


def _rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _default(field)
        yield prefix + name, default, field.description or ""
        for item in get_args(inner) if get_origin(inner) is tuple else ():
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _rows(item, f"{prefix}{name}[].")


def _default(field: FieldInfo) -> str:
    return _yaml_value(field.get_default()) if field.default_factory is None else "by source"


def _yaml_value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "[]" if value == () else str(value)


def settings_markdown() -> str:
    """Returns all settings as Markdown tables, one per section."""
    lines: list[str] = []
    for location, section in SECTIONS.items():
        lines += [f"**{location}**", ""]
        if section is EmbedServerSettings:
            lines += [_EMBED_SERVER_SETTINGS, ""]
            continue
        lines += ["| setting | default | what it does |", "|---|---|---|"]
        lines += [f"| `{name}` | `{default}` | {text} |" for name, default, text in _rows(section)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
