"""Every setting of the service: one typed tree with defaults, bounds and descriptions.

Two kinds, by what a change costs. `AppConfig` is the `args` of the application: a change
restarts all replicas. The `*Settings` classes are the `user_config` of one deployment each:
Ray hands a change to running replicas. README's tables are printed from here by
`embedserve settings`.
"""

from collections.abc import Iterator
from typing import get_args

from pydantic import BaseModel, SecretStr

from serve_app.config.access import AccessSettings, ApiKey
from serve_app.config.application import MINILM, AppConfig, CacheConfig, ModelConfig
from serve_app.config.deployments import CacheLookupSettings, EmbedderSettings, IngressSettings

__all__ = [
    "MINILM",
    "SECTIONS",
    "USER_CONFIGS",
    "AccessSettings",
    "ApiKey",
    "AppConfig",
    "CacheConfig",
    "CacheLookupSettings",
    "EmbedderSettings",
    "IngressSettings",
    "ModelConfig",
    "settings_markdown",
]

#: The `user_config` that each deployment takes.
USER_CONFIGS: dict[str, type[BaseModel]] = {
    "Ingress": IngressSettings,
    "CacheLookup": CacheLookupSettings,
    "Embedder": EmbedderSettings,
}
#: Where each part of the tree is written in the YAML file.
SECTIONS: dict[str, type[BaseModel]] = {
    "args": AppConfig,
    **{f"{deployment}: user_config": settings for deployment, settings in USER_CONFIGS.items()},
}


def _rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _as_yaml(field.get_default())
        yield prefix + name, default, field.description or ""
        for item in get_args(inner):
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield from _rows(item, f"{prefix}{name}[].")


def _as_yaml(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "[]" if value == () else str(value)


def settings_markdown() -> str:
    """All settings as Markdown tables, one for each section."""
    lines: list[str] = []
    for place, section in SECTIONS.items():
        lines += [f"**{place}**", "", "| setting | default | what it does |", "|---|---|---|"]
        lines += [f"| `{name}` | `{default}` | {text} |" for name, default, text in _rows(section)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
