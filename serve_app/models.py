"""What a model is: where its files lie, what it takes and gives, and the space its vectors are in.

`resolve` reads the files of a sentence-transformers folder, never runs the model and imports
neither torch nor transformers, so it is cheap enough to run wherever the answer must be
certain: when the application is built, and again in every replica that loads the model. What
hashes words has no files, only its parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from embedserve_client.model_files import (
    NO_PROMPTS,
    ModelFiles,
    Modules,
    digest,
    package_folder,
    read_json,
)
from serve_app.config import ModelConfig
from serve_app.errors import InvalidRequest, ModelSourceError, short_repr
from serve_app.types import Float32

#: A hashing engine that gives other vectors needs another number.
_HASHING_VERSION = 1
#: What text-embeddings-inference calls ways of pooling.
_POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last_token"}
_HASHING_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the service promises it, the same in every replica."""

    name: str
    aliases: tuple[str, ...]
    dim: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    weights_sha256: str | None  #: None: it has no weights
    space_id: str  #: `<family>-<precision>`; see `family`
    created_s: int  #: Unix time of the weights file; 0: it has none
    unit_length: bool = False  #: True: its pipeline ends with vectors of that length
    pooling: str | None = None  #: how vectors of tokens become one: `mean`, `cls`, …
    #: Of each component the least and the greatest value, shape (2, dim), by which int8 vectors are
    #: made; None: not known. They come with the engine's choice, not out of the model's files.
    quantization_ranges: Float32 | None = field(default=None, compare=False, repr=False)

    def accepts(self, name: str | None) -> bool:
        """Whether a client that asks for `name` (None: any) is answered by this model."""
        return name is None or name == self.name or name in self.aliases

    def prompt(self, input_type: str | None) -> str:
        """The text put before each input of this type.

        Raises:
            InvalidRequest: the model has no prompt of that name.
        """
        name = self.default_prompt if input_type is None else input_type
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise InvalidRequest(
                f"The model has no input type {short_repr(name)}. Known ones: {known}.",
                "input_type",
            )
        return self.prompts[name]


def folder(config: ModelConfig) -> Path:
    """The folder that holds the model's files on this machine; a hub model is fetched first.

    Raises:
        ModelSourceError: there is no such package, folder or pinned revision, or it has no files.
    """
    kind, _, place = config.source.partition(":")
    if kind == "hashing":
        raise ModelSourceError(f"`{config.source}` has no files: it isn't a trained model.")
    if kind == "package":
        found = package_folder(place)
        if found is None:
            raise ModelSourceError(
                f"The package {place!r} that holds the model isn't installed. Run `pip install "
                f"{place.replace('_', '-')}`, or set `model.source` to a folder: `path:<folder>`."
            )
        path = found
    elif kind == "path":
        path = Path(place).expanduser()
    else:
        path = _download(place, config.revision)
    if not (path / "modules.json").is_file():
        raise ModelSourceError(
            f"{config.source} isn't a sentence-transformers model: it has no `modules.json`."
        )
    return path


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if revision is None:
        raise ModelSourceError(
            f"`model.source: hub:{repo}` needs `model.revision`, the full commit to pin: a branch "
            "can move, and every vector would change with it."
        )
    try:
        return Path(snapshot_download(repo, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelSourceError(
            f"Could not fetch {repo} at {revision[:12]} from the hub ({type(error).__name__}). "
            "Check the name and the network, or fetch it elsewhere and use `path:<folder>`."
        ) from error


def resolve(config: ModelConfig, precision: str = "fp32") -> ModelSpec:
    """Reads a model's files into its spec.

    Raises:
        ModelSourceError: files are missing or unreadable, or the weights aren't the ones
            `sha256` asks for.
    """
    if config.hashing_dim is not None:
        return _hashing(config, config.hashing_dim)
    path = folder(config)
    try:
        return _read(path, config, precision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSourceError(f"Could not read the model {config.source}: {error!r}") from error


def _hashing(config: ModelConfig, dim: int) -> ModelSpec:
    max_tokens = config.max_tokens or _HASHING_MAX_TOKENS
    parts = {"hashing": _HASHING_VERSION, "dim": dim, "max_tokens": max_tokens}
    return ModelSpec(
        name=config.name,
        aliases=config.aliases,
        dim=dim,
        max_tokens=max_tokens,
        prompts=NO_PROMPTS,
        default_prompt=None,
        weights_sha256=None,
        space_id=f"{digest(parts)}-fp32",
        created_s=0,
        unit_length=True,
        pooling="mean",
    )


def _read(path: Path, config: ModelConfig, precision: str) -> ModelSpec:
    files = ModelFiles.read(path, config.max_tokens)
    main_file, main = next(iter(files.weights.items()))
    if config.sha256 is not None and main != config.sha256:
        raise ModelSourceError(
            f"The weights of {config.name} are not the ones that were asked for: SHA-256 {main}, "
            f"wanted {config.sha256}. Install the model again, or mend `model.sha256`."
        )
    return ModelSpec(
        name=config.name,
        aliases=config.aliases,
        dim=_dim(files.modules, path),
        max_tokens=files.max_tokens,
        prompts=files.prompts,
        default_prompt=files.default_prompt,
        weights_sha256=main,
        space_id=f"{files.family}-{precision}",
        created_s=int(main_file.stat().st_mtime),
        unit_length=files.modules[-1][0] == "Normalize",
        pooling=_pooling(files.modules),
    )


def _dim(modules: Modules, path: Path) -> int:
    for _, settings in reversed(modules):
        if "out_features" in settings:
            return int(settings["out_features"])
        width = settings.get("word_embedding_dimension") or settings.get("embedding_dimension")
        if width:
            modes = sum(1 for key, on in settings.items() if key.startswith("pooling_mode_") and on)
            return int(width) * max(1, modes)
    return int(read_json(path / "config.json")["hidden_size"])


def _pooling(modules: Modules) -> str | None:
    prefix = "pooling_mode_"
    for name, settings in modules:
        if name == "Pooling":
            on = [key for key, is_on in settings.items() if key.startswith(prefix) and is_on]
            named = (key.removeprefix(prefix) for key in on)
            mode = "+".join(_POOLINGS.get(name, name) for name in named)
            return mode or settings.get("pooling_mode")
    return None
