"""Model metadata: configuration → model directory → `ModelSpec`.

`resolve` reads the files of a sentence-transformers directory. It never runs the model and imports
neither torch nor transformers, so the application builder and every replica call it and compare
the results. A hashing model has no files; its parameters define it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedserve_client.model_files import (
    DEFAULT_PROMPTS,
    ModelFiles,
    Modules,
    json_digest,
    package_model_dir,
    read_json,
)
from serve_app.config import ModelConfig
from serve_app.errors import InvalidRequest, ModelSourceError, short_repr
from serve_app.tasks import ModelKind, Task
from serve_app.types import Float32

#: Part of the space id. Bump it whenever the vectors of the hashing engine change.
_HASHING_VERSION = 1
#: sentence-transformers' names of pooling modes → text-embeddings-inference's names.
_POOLING_NAMES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last_token"}
_HASHING_MAX_TOKENS = 512
#: Weights in the formats of other libraries. Many repositories hold the same weights in each.
_UNUSED_FILES = ["onnx/*", "openvino/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot"]
_BIN = "pytorch_model*.bin"  #: read where there are no safetensors


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The properties of a model that clients rely on, identical in every replica."""

    name: str
    aliases: tuple[str, ...]
    dim: int
    max_tokens: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    weights_sha256: str | None  #: None: the model has no weights
    space_id: str  #: `<family>-<precision>`; see `ModelFiles.family`
    created_s: int  #: Unix time of the weights file; 0 without weights
    unit_length: bool = False  #: the pipeline normalizes vectors to length 1
    pooling: str | None = None  #: how token vectors become one vector: `mean`, `cls`, …
    is_static: bool = False  #: a table of token vectors without a transformer
    kind: ModelKind = "dense"
    tasks: tuple[Task, ...] = ("embed", "embed_tokens")  #: the main task first
    labels: tuple[str, ...] = ()  #: of a cross-encoder's scores, in the order of its logits
    activation: str = "identity"  #: of a cross-encoder: `sigmoid`, `softmax` or `identity`
    dimensions: tuple[int, ...] = ()  #: to which vectors may be truncated (Matryoshka); (): any
    #: Prompts that are empty in the model's files → the equivalent name whose prompt is used.
    prompt_sources: Mapping[str, str] = field(default_factory=dict)
    #: Minimum and maximum of each dimension, shape (2, dim), for scalar quantization to int8. None:
    #: not calibrated. Engine selection fills them in; they aren't part of the model's files.
    quantization_ranges: Float32 | None = field(default=None, compare=False, repr=False)

    def prompt(self, input_type: str | None) -> str:
        """Returns the prompt that precedes each input of this type.

        Raises:
            InvalidRequest: the model has no prompt of this name.
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


def model_dir(config: ModelConfig) -> Path:
    """Returns the local directory of a model's files. Downloads a hub model first.

    Raises:
        ModelSourceError: the package, directory or pinned revision doesn't exist, or holds no
            sentence-transformers model.
    """
    kind, _, location = config.source.partition(":")
    if kind == "hashing":
        raise ModelSourceError(f"`{config.source}` has no files: a hashing model isn't trained.")
    if kind == "package":
        installed = package_model_dir(location)
        if installed is None:
            raise ModelSourceError(
                f"The package {location!r} of the model isn't installed. Run `pip install "
                f"{location.replace('_', '-')}`, or set `model.source: path:<directory>`."
            )
        path = installed
    elif kind == "path":
        path = Path(location).expanduser()
    else:
        path = _download(location, config.revision)
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
            f"`model.source: hub:{repo}` needs `model.revision`, a full commit hash: a branch can "
            "move, which would change every vector."
        )
    try:
        path = Path(
            snapshot_download(repo, revision=revision, ignore_patterns=[*_UNUSED_FILES, _BIN])
        )
        if not any(path.rglob("*.safetensors")):
            path = Path(snapshot_download(repo, revision=revision, ignore_patterns=_UNUSED_FILES))
        return path
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelSourceError(
            f"Could not download {repo} at {revision[:12]} from the hub ({type(error).__name__}). "
            "Check the name and the network, or copy the files here and use `path:<directory>`."
        ) from error


def resolve(config: ModelConfig, precision: str = "fp32") -> ModelSpec:
    """Returns the spec of a model, read from its files.

    Args:
        config: names the model and its source.
        precision: the precision that the engine computes at; part of the space id.

    Raises:
        ModelSourceError: files are missing or unreadable, or the weights don't match
            `model.sha256`.
    """
    if config.hashing_dim is not None:
        return _hashing_spec(config, config.hashing_dim)
    path = model_dir(config)
    try:
        return _read_spec(path, config, precision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelSourceError(f"Could not read the model {config.source}: {error!r}") from error


def _hashing_spec(config: ModelConfig, dim: int) -> ModelSpec:
    max_tokens = config.max_tokens or _HASHING_MAX_TOKENS
    parts = {"hashing": _HASHING_VERSION, "dim": dim, "max_tokens": max_tokens}
    return ModelSpec(
        name=config.name,
        aliases=config.aliases,
        dim=dim,
        max_tokens=max_tokens,
        prompts=DEFAULT_PROMPTS,
        default_prompt=None,
        weights_sha256=None,
        space_id=f"{json_digest(parts)}-fp32",
        created_s=0,
        unit_length=True,
        pooling="mean",
    )


def _read_spec(path: Path, config: ModelConfig, precision: str) -> ModelSpec:
    files = ModelFiles.read(path, config.max_tokens, config.prompts)
    if config.trust_remote_code:
        _check_code_is_pinned(files)
    weights_file, sha256 = next(iter(files.weights.items()))
    if config.sha256 is not None and sha256 != config.sha256:
        raise ModelSourceError(
            f"The weights of {config.name} don't match `model.sha256`: they have {sha256}, the "
            f"configuration expects {config.sha256}. Reinstall the model, or correct the setting."
        )
    return ModelSpec(
        name=config.name,
        aliases=config.aliases,
        dim=_static_dim(weights_file) if files.is_static else _dim(files),
        max_tokens=files.max_tokens,
        prompts=files.prompts,
        default_prompt=files.default_prompt,
        weights_sha256=sha256,
        space_id=f"{files.family}-{precision}",
        created_s=int(weights_file.stat().st_mtime),
        unit_length=files.modules[-1][0] == "Normalize",
        pooling="mean" if files.is_static else _pooling(files.modules),
        is_static=files.is_static,
        prompt_sources=files.prompt_sources,
    )


def _check_code_is_pinned(files: ModelFiles) -> None:
    """Checks that the model's code is in its own repository.

    Raises:
        ModelSourceError: it is in another one, of which no revision is set.
    """
    references = read_json(files.first_module_dir / "config.json", default={}).get("auto_map", {})
    for reference in references.values():
        repository, separator, _ = str(reference).partition("--")
        if separator:
            raise ModelSourceError(
                f"The code of this model is in another repository, {repository}, which "
                "`model.revision` doesn't pin. Leave out `model.trust_remote_code` if transformers "
                "has the architecture. Otherwise copy the code's files into a folder with the "
                f"model, remove `{repository}--` from its config.json, and use `path:<directory>`."
            )


def _static_dim(weights_file: Path) -> int:
    """Returns the width of a static model's table, from the header of its file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights_file, "numpy") as tensors:
            # sentence-transformers' name of the table, and Model2Vec's
            (name,) = {"embedding.weight", "embeddings"} & {*tensors.keys()}
            return int(tensors.get_slice(name).get_shape()[1])
    except SafetensorError as error:
        raise ValueError(f"{weights_file.name} is not a safetensors file: {error}") from error


def _dim(files: ModelFiles) -> int:
    for _, settings in reversed(files.modules):
        if "out_features" in settings:
            return int(settings["out_features"])
        width = settings.get("word_embedding_dimension") or settings.get("embedding_dimension")
        if width:
            # Pooling modes are concatenated.
            return int(width) * max(1, len(_pooling_modes(settings)))
    return int(read_json(files.first_module_dir / "config.json")["hidden_size"])


def _pooling(modules: Modules) -> str | None:
    for name, settings in modules:
        if name == "Pooling":
            modes = _pooling_modes(settings)
            joined = "+".join(_POOLING_NAMES.get(mode, mode) for mode in modes)
            return joined or settings.get("pooling_mode")
    return None


def _pooling_modes(settings: Mapping[str, Any]) -> list[str]:
    prefix = "pooling_mode_"
    return [
        key.removeprefix(prefix) for key, on in settings.items() if key.startswith(prefix) and on
    ]
