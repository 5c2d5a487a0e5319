"""Model metadata: configuration → source → `ModelSpec`.

`resolve` never runs the model and imports neither torch nor transformers, so the application
builder and every replica call it and compare the results.
"""

from dataclasses import replace
from pathlib import Path

from embedserve_client.model_files import is_model_dir
from serve_app.config import ModelConfig
from serve_app.errors import ModelSourceError
from serve_app.model_spec import ModelSpec
from serve_app.models.files import read_spec
from serve_app.sources import ModelParameters, SpecSettings

__all__ = ["ModelSpec", "model_dir", "resolve"]


def model_dir(config: ModelConfig) -> Path:
    """Returns the local directory of a model's files. Downloads a hub model first.

    Raises:
        ModelSourceError: the package, directory or pinned revision doesn't exist, or holds no
            model that can be served.
    """
    return _checked_dir(config, config.parsed_source.resolve())


def resolve(config: ModelConfig, precision: str = "fp32") -> ModelSpec:
    """Returns the spec of a model, read from its files.

    Args:
        config: names the model and its source.
        precision: the precision that the engine computes at; part of the space id.

    Raises:
        ModelSourceError: files are missing or unreadable, or the weights don't match
            `model.sha256`.
    """
    spec = _read_spec(config, precision)
    return replace(
        spec,
        dimensions=tuple(sorted(config.dimensions or spec.dimensions)),
        nano_usd_per_1k_tokens=config.nano_usd_per_1k_tokens,
    )


def _read_spec(config: ModelConfig, precision: str) -> ModelSpec:
    source = config.parsed_source.resolve()
    if not isinstance(source, Path):
        settings = SpecSettings(
            config.max_tokens, config.prompts, config.provider.dimensions, config.provider.model
        )
        return source.spec(config.name, config.aliases, settings)
    path = _checked_dir(config, source)
    try:
        return read_spec(path, config, precision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSourceError(f"Could not read the model {config.source}: {error!r}") from error


def _checked_dir(config: ModelConfig, source: Path | ModelParameters) -> Path:
    if not isinstance(source, Path):
        raise ModelSourceError(f"`{config.source}` has no files of a model.")
    if not is_model_dir(source):
        raise ModelSourceError(
            f"{config.source} isn't a sentence-transformers model: it has no `modules.json`, and "
            "isn't a transformers model for sequence classification."
        )
    return source
