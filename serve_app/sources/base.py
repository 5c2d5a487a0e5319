"""What all sources have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from serve_app.model_spec import ModelSpec


class SpecSettings(NamedTuple):
    """The settings of a model without files that define its vectors; None: the model's own."""

    max_tokens: int | None = None
    prompts: Mapping[str, str] | None = None
    dimensions: int | None = None  #: that a provider is asked for
    model: str | None = None  #: behind a name that a provider's customer has chosen


class ModelParameters(Protocol):
    """What defines a model without files."""

    def spec(self, name: str, aliases: tuple[str, ...], settings: SpecSettings) -> ModelSpec:
        """Returns the model's spec.

        Args:
            name: name of the model in requests.
            aliases: its other names.
            settings: those of the model's entry.

        Raises:
            ModelSourceError: the settings don't define a model.
        """
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from. Sources with equal fields are the same."""

    #: How the setting is written and what it means, for the documentation.
    description: ClassVar[str]
    #: The engine that such models run on; None: any that runs model files.
    engine: ClassVar[str | None] = None
    #: Whether the model consists of files, which `revision` and `sha256` identify.
    has_files: ClassVar[bool] = True

    location: str  #: the setting, without the prefix
    revision: str | None = None  #: of a repository: 40 hex digits

    def resolve(self) -> Path | ModelParameters:
        """Returns the local directory of the model's files, or what defines a model without files.

        Raises:
            ModelSourceError: there is no such model; the message says how to get it.
        """
        raise NotImplementedError
