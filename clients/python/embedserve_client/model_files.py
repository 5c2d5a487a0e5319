"""A sentence-transformers directory → the metadata that determines its vectors.

The model isn't run. The service and the client's local model both derive the family of a space from
this module, so they agree on which vectors are comparable.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Keys of `config.json` that don't affect what the model computes.
_IGNORED_CONFIG_KEYS = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
}
#: The prompts of models that define none.
DEFAULT_PROMPTS: Mapping[str, str] = {"query": "", "document": ""}
#: Equivalent names of the input types `query` and `document`; models differ in which they use.
INPUT_TYPE_ALIASES = (
    ("query", "search_query", "retrieval.query"),
    ("document", "passage", "search_document", "retrieval.passage"),
)

Modules = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The metadata of a model's files."""

    path: Path
    weights: Mapping[Path, str]  #: weight file → SHA-256; the transformer's files come first
    modules: Modules  #: class name and configuration of each module of the pipeline
    prompts: Mapping[str, str]
    default_prompt: str | None
    max_tokens: int
    family: str  #: 16 hex digits; see `_family`

    @classmethod
    def read(cls, path: Path, max_tokens: int | None = None) -> "ModelFiles":
        """Reads a model directory.

        Args:
            path: a directory with `modules.json`.
            max_tokens: the token limit, special tokens included; None: the model's own limit.

        Raises:
            OSError: a file is missing or can't be read.
            ValueError: a file is malformed.
            KeyError: a setting is missing.
        """
        modules = _modules(path)
        weights = {file: _sha256(file) for file in _weight_files(path)}
        config = read_json(path / "config_sentence_transformers.json", default={})
        prompts = config.get("prompts") or DEFAULT_PROMPTS
        limit = max_tokens or _max_tokens(path)
        return cls(
            path=path,
            weights=weights,
            modules=modules,
            prompts=prompts,
            default_prompt=config.get("default_prompt_name"),
            max_tokens=limit,
            family=_family(path, modules, weights, limit, prompts),
        )


def package_model_dir(module: str) -> Path | None:
    """Returns the directory `model` of a package that ships a model; None: it isn't installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def json_digest(value: Mapping[str, Any]) -> str:
    """Returns a hash of a JSON object, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path, default: Any = None) -> Any:
    """Returns the content of a JSON file, or `default`, if not None, when the file is missing."""
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def _family(
    path: Path,
    modules: Modules,
    weights: Mapping[Path, str],
    max_tokens: int,
    prompts: Mapping[str, str],
) -> str:
    """Returns a hash of everything that determines a vector except the precision.

    It covers weights, architecture, tokenizer, the modules after the transformer (pooling, dense,
    normalize) with their configuration, the names of the prompts, and the token limit.
    """
    names = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model")
    tokenizer = [path / name for name in names]
    architecture = read_json(path / "config.json")
    return json_digest(
        {
            "weights": {str(file.relative_to(path)): value for file, value in weights.items()},
            "architecture": {
                k: v for k, v in architecture.items() if k not in _IGNORED_CONFIG_KEYS
            },
            "tokenizer": {file.name: _sha256(file) for file in tokenizer if file.is_file()},
            "modules": modules,
            "prompts": sorted(prompts),
            "max_tokens": max_tokens,
        }
    )


def _modules(path: Path) -> Modules:
    entries = sorted(read_json(path / "modules.json"), key=lambda module: module["idx"])
    return [
        (
            module["type"].rpartition(".")[2],
            read_json(path / module["path"] / "config.json", default={}) if module["path"] else {},
        )
        for module in entries
    ]


def _weight_files(path: Path) -> list[Path]:
    """Returns the weight files: the transformer's first, then those of the other modules."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        files = sorted(path.glob(pattern))
        if files:
            return files + sorted(path.glob(f"*/{pattern}"))
    raise FileNotFoundError(
        f"{path.name} has no weights (`*.safetensors` or `pytorch_model*.bin`)."
    )


def _max_tokens(path: Path) -> int:
    limit = read_json(path / "sentence_bert_config.json", default={}).get("max_seq_length")
    if limit:
        return int(limit)
    tokenizer = read_json(path / "tokenizer_config.json", default={})
    positions = read_json(path / "config.json").get("max_position_embeddings", 512)
    return int(min(tokenizer.get("model_max_length") or positions, positions))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
