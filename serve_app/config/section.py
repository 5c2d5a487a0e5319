"""The base class of all settings: strict, immutable, with errors that never contain a value."""

from collections.abc import Container, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from serve_app.errors import ConfigurationError

MIB = 1 << 20
GIB = 1 << 30


class Section(BaseModel):
    """A part of the settings tree. It rejects unknown fields, and its values never change."""

    # A password or an API key may stand in the wrong field, so errors never quote the input.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True
    )

    #: Location of the section in the YAML file; empty for sections inside others.
    location: ClassVar[str] = ""
    #: Former field name → current name.
    renamed: ClassVar[Mapping[str, str]] = {}
    #: Former field name → why it was removed, as a sentence.
    removed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None, location: str | None = None) -> Self:
        """Returns the section with these values; None: all defaults.

        Args:
            values: the content of the section.
            location: names the section in errors; None: the class's own location.

        Raises:
            ConfigurationError: a value is not valid. The message is one line.
        """
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise ConfigurationError(
                f"{location or cls.location}: {describe_errors(error)}"
            ) from None

    @model_validator(mode="before")
    @classmethod
    def _reject_former_names(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            former = {old: f"is now called `{new}`" for old, new in cls.renamed.items()}
            former |= {old: f"was removed: {why}" for old, why in cls.removed.items()}
            faults = [f"`{old}` {fate}" for old, fate in former.items() if old in values]
            if faults:
                raise ValueError("; ".join(faults))
        return values


def describe_errors(error: ValidationError, known: Container[str] | None = None) -> str:
    """Returns what a validation error says, in one line: the path of each field and its fault.

    Args:
        error: an error of a section.
        known: the field names that the text may contain, if a secret may stand in place of a name;
            others are replaced by `?`. None: all.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(_describe(detail, known) for detail in details)


def _describe(detail: ErrorDetails, known: Container[str] | None) -> str:
    path = ".".join(
        str(part) if known is None or isinstance(part, int) or part in known else "?"
        for part in detail["loc"]
    )
    if detail["type"] == "extra_forbidden":
        return f"{path}: there is no such setting"
    message = detail["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
