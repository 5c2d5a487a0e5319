"""A sentence-transformers folder, read without running the model: what decides its vectors.

The service and the client's local fall-back both tell a model's family from here, so that the
two can't disagree on which vectors may meet.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Keys of `config.json` that say how the file was written, not what the model computes.
_INERT_KEYS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}
#: Of models that name no prompts.
NO_PROMPTS: Mapping[str, str] = {"query": "", "document": ""}
#: What the two sides of a search are called; a model has one of the names of a side, or none.
ROLES = (
    ("query", "search_query", "retrieval.query"),
    ("document", "passage", "search_document", "retrieval.passage"),
)

Modules = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files of a model say of it."""

    folder: Path
    weights: Mapping[Path, str]  #: each file and its SHA-256, the transformer's first
    modules: Modules  #: class name and settings of each step of the pipeline
    prompts: Mapping[str, str]
    default_prompt: str | None
    max_tokens: int
    family: str  #: 16 hex digits; see `_family`

    @classmethod
    def read(cls, folder: Path, max_tokens: int | None = None) -> "ModelFiles":
        """Reads a folder.

        Args:
            folder: with `modules.json` and what it names.
            max_tokens: the longest input, special tokens included; None: the model's own limit.

        Raises:
            OSError: a file is missing or can't be read.
            ValueError: a file isn't what it should be (`KeyError` where a setting is missing).
        """
        modules = _modules(folder)
        weights = {file: _sha256(file) for file in _weight_files(folder)}
        settings = read_json(folder / "config_sentence_transformers.json", missing={})
        prompts = settings.get("prompts") or NO_PROMPTS
        longest = max_tokens or _max_tokens(folder)
        return cls(
            folder=folder,
            weights=weights,
            modules=modules,
            prompts=prompts,
            default_prompt=settings.get("default_prompt_name"),
            max_tokens=longest,
            family=_family(folder, modules, weights, longest, prompts),
        )


def package_folder(module: str) -> Path | None:
    """The folder `model/` of an installed package that ships a model; None: it isn't installed."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0]) / "model"


def digest(parts: Mapping[str, Any]) -> str:
    """A hash of what can be written as JSON, 16 hex digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path, missing: Any = None) -> Any:
    """A file's content; `missing` where there is no such file and one was given."""
    if missing is not None and not path.is_file():
        return missing
    return json.loads(path.read_text(encoding="utf-8"))


def _family(
    folder: Path,
    modules: Modules,
    weights: Mapping[Path, str],
    max_tokens: int,
    prompts: Mapping[str, str],
) -> str:
    """Hash of everything but the precision that decides a vector's values.

    Weights, architecture, tokenizer, the modules behind the transformer (pooling, dense,
    normalise) with their settings, the names of the prompts, and where texts are cut.
    """
    names = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model")
    tokenizer = [folder / name for name in names]
    architecture = read_json(folder / "config.json")
    return digest(
        {
            "weights": {str(file.relative_to(folder)): value for file, value in weights.items()},
            "architecture": {k: v for k, v in architecture.items() if k not in _INERT_KEYS},
            "tokenizer": {file.name: _sha256(file) for file in tokenizer if file.is_file()},
            "modules": modules,
            "prompts": sorted(prompts),
            "max_tokens": max_tokens,
        }
    )


def _modules(folder: Path) -> Modules:
    listed = sorted(read_json(folder / "modules.json"), key=lambda module: module["idx"])
    return [
        (
            module["type"].rpartition(".")[2],
            read_json(folder / module["path"] / "config.json", missing={})
            if module["path"]
            else {},
        )
        for module in listed
    ]


def _weight_files(folder: Path) -> list[Path]:
    """Weights of the transformer first, then those of the modules behind it."""
    for pattern in ("*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found + sorted(folder.glob(f"*/{pattern}"))
    raise FileNotFoundError(
        f"{folder.name} has no weights (`*.safetensors` or `pytorch_model*.bin`)."
    )


def _max_tokens(folder: Path) -> int:
    limit = read_json(folder / "sentence_bert_config.json", missing={}).get("max_seq_length")
    if limit:
        return int(limit)
    tokenizer = read_json(folder / "tokenizer_config.json", missing={})
    positions = read_json(folder / "config.json").get("max_position_embeddings", 512)
    return int(min(tokenizer.get("model_max_length") or positions, positions))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
