"""A sentence-transformers directory → the metadata that determines its vectors.

The model isn't run. The service and the client's local model both derive the family of a space from
this module, so they agree on which vectors are comparable.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

#: Keys of `config.json` that don't affect what the model computes.
_IGNORED_CONFIG_KEYS = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
}
#: The prompts of models that define none.
DEFAULT_PROMPTS: dict[str, str] = {"query": "", "document": ""}
#: Equivalent names of the input types `query` and `document`; models differ in which they use.
INPUT_TYPE_ALIASES = (
    ("query", "search_query", "retrieval.query"),
    ("document", "passage", "search_document", "retrieval.passage"),
)

#: The token limit of static models, which have none of their own.
_STATIC_MAX_TOKENS = 131_072
#: sentence-transformers' modules that can't be first: each takes other inputs than token ids.
_UNSUPPORTED_MODULES = {"Asym", "BoW", "Router", "WordEmbeddings"}
#: Weights that PyTorch saved. They are loaded with `weights_only`, which runs no code.
_PICKLED_WEIGHTS = "pytorch_model*.bin"
#: The file of a model's kind, prompts and similarity.
_SETTINGS = "config_sentence_transformers.json"
#: The file of the first module's settings: modalities, and the lengths of a multi-vector model.
_TRANSFORMER_SETTINGS = "sentence_bert_config.json"
#: Further files that determine the outputs of some kinds.
_KIND_FILES = (
    _TRANSFORMER_SETTINGS,
    *("preprocessor_config.json", "processor_config.json", "vocab.json", "merges.txt"),
)

Modules = list[tuple[str, dict[str, Any]]]
#: The classes of sentence-transformers that load a model: `SentenceTransformer`, `CrossEncoder`,
#: `SparseEncoder`, `MultiVectorEncoder`.
Kind = Literal["dense", "cross-encoder", "sparse", "multi-vector"]
#: Names of kinds in the files of sentence-transformers, and PyLate's.
_KINDS: Mapping[str, Kind] = {
    "SentenceTransformer": "dense",
    "CrossEncoder": "cross-encoder",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi-vector",
    "ColBERT": "multi-vector",
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The metadata of a model's files."""

    path: Path
    first_module_dir: Path  #: the folder of the transformer, or of the static model's table
    weights: Mapping[Path, str]  #: weight file → SHA-256; those of the first module come first
    modules: Modules  #: class name and configuration of each module of the pipeline
    prompts: Mapping[str, str]
    #: Prompts that are empty in the files → the equivalent name whose prompt replaces them.
    prompt_sources: Mapping[str, str]
    default_prompt: str | None
    max_tokens: int
    family: str  #: 16 hex digits; see `_family`
    kind: Kind
    config: Mapping[str, Any]  #: of the first module: `config.json`; empty if it has none
    settings: Mapping[str, Any]  #: `config_sentence_transformers.json`; empty if it is missing
    #: Input types of a dense model: `text`, and `image` if it embeds images.
    modalities: frozenset[str]

    @classmethod
    def read(
        cls,
        path: Path,
        max_tokens: int | None = None,
        prompts: Mapping[str, str] | None = None,
        digest: Callable[[Path], str] | None = None,
    ) -> "ModelFiles":
        """Reads a model directory.

        Args:
            path: a directory that sentence-transformers saved, or the files of a transformers model
                for sequence classification.
            max_tokens: the token limit, special tokens included; None: the model's own limit.
            prompts: prompts in place of the model's own; None: the model's own.
            digest: returns the SHA-256 of a weights file; None: reads it.

        Raises:
            OSError: a file is missing or can't be read.
            ValueError: a file is malformed, or the model is of an unsupported kind.
            KeyError: a setting is missing.
        """
        entries = _module_entries(path)
        modules = [_module(path, entry) for entry in entries]
        if not modules:
            raise ValueError("modules.json lists no modules.")
        first_dir = path / entries[0]["path"]
        config: dict[str, Any] | None = {} if _is_static(modules) else None
        config = read_json(first_dir / "config.json", default=config)
        settings = read_json(path / _SETTINGS, default={})
        kind = _kind(path, modules, settings)
        modalities = _modalities(first_dir, modules, config)
        first = modules[0][0]
        if first in _UNSUPPORTED_MODULES or not modalities:
            raise ValueError(
                f"Its first module is {first}. Only transformers and StaticEmbedding can be served."
            )
        weight_files = _weight_files(path, first_dir, [path / entry["path"] for entry in entries])
        weights = {file: (digest or _sha256)(file) for file in weight_files}
        own_prompts = _own_prompts(kind, settings)
        sources = _prompt_sources(own_prompts) if prompts is None else {}
        limit = max_tokens or _limit(first_dir, kind, modules, settings)
        determining = _determining_files(first_dir, kind, settings, modalities)
        own = prompts or sorted(own_prompts)
        return cls(
            path=path,
            first_module_dir=first_dir,
            weights=weights,
            modules=modules,
            prompts=prompts or {name: own_prompts[sources.get(name, name)] for name in own_prompts},
            prompt_sources=sources,
            default_prompt=settings.get("default_prompt_name"),
            max_tokens=limit,
            kind=kind,
            config=config,
            settings=settings,
            modalities=modalities,
            # Other prompts count with their texts: a program that doesn't know them must not pass
            # for one of the same family.
            family=_family(path, first_dir, modules, weights, limit, own, determining),
        )

    @property
    def is_static(self) -> bool:
        """Whether the model is a table of token vectors (StaticEmbedding, Model2Vec)."""
        return _is_static(self.modules)


def package_model_dir(module: str) -> Path | None:
    """Returns the directory `model` of a package that ships a model; None: it isn't installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def is_model_dir(path: Path) -> bool:
    """Returns whether a directory holds a model that `ModelFiles` may be able to read."""
    return bool(_module_entries(path))


def json_digest(value: Mapping[str, Any]) -> str:
    """Returns a hash of a JSON object, 16 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_json(path: Path, default: Any = None) -> Any:
    """Returns the content of a JSON file, or `default`, if not None, when the file is missing."""
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def _is_static(modules: Modules) -> bool:
    return modules[0][0] == "StaticEmbedding"


def _prompt_sources(prompts: Mapping[str, str]) -> dict[str, str]:
    """Returns for each empty prompt the equivalent name that has one.

    sentence-transformers adds empty prompts named `query` and `document` to the models it saves,
    next to those that the model was trained with.
    """
    sources: dict[str, str] = {}
    for names in INPUT_TYPE_ALIASES:
        source = next((name for name in names if prompts.get(name)), None)
        if source is not None:
            sources |= {name: source for name in names if prompts.get(name) == ""}
    return sources


def _family(
    path: Path,
    first_module_dir: Path,
    modules: Modules,
    weights: Mapping[Path, str],
    max_tokens: int,
    prompts: Mapping[str, str] | list[str],
    determining: Mapping[str, Any] | None,
) -> str:
    """Returns a hash of everything that determines a vector except the precision.

    It covers weights, architecture, tokenizer, the modules after the transformer (pooling, dense,
    normalize) with their configuration, the prompts, and the token limit. `determining` holds what
    other models than dense ones of texts have besides.
    """
    names = ("tokenizer.json", "vocab.txt", "sentencepiece.bpe.model")
    tokenizer = [first_module_dir / name for name in names]
    default: dict[str, Any] | None = {} if _is_static(modules) else None
    architecture = read_json(first_module_dir / "config.json", default=default)
    return json_digest(
        ({} if determining is None else {"kind": determining})
        | {
            "weights": {str(file.relative_to(path)): value for file, value in weights.items()},
            "architecture": {
                k: v for k, v in architecture.items() if k not in _IGNORED_CONFIG_KEYS
            },
            "tokenizer": {file.name: _sha256(file) for file in tokenizer if file.is_file()},
            "modules": modules,
            "prompts": prompts,
            "max_tokens": max_tokens,
        }
    )


def _module_entries(path: Path) -> list[dict[str, Any]]:
    """Returns the modules of a model, in their order; empty if the directory holds none.

    A transformers model for sequence classification has no list of modules: it is the only one.
    """
    file = path / "modules.json"
    if file.is_file():
        return sorted(read_json(file), key=lambda module: int(module["idx"]))
    architectures = read_json(path / "config.json", default={}).get("architectures") or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        return []
    return [{"idx": 0, "path": "", "type": "Transformer"}]


def _kind(path: Path, modules: Modules, settings: Mapping[str, Any]) -> Kind:
    if not (path / "modules.json").is_file():
        return "cross-encoder"
    name = settings.get("model_type")
    if name is None:  # saved before version 5
        return "sparse" if "SpladePooling" in dict(modules) else "dense"
    if name not in _KINDS:
        raise ValueError(f"Its `model_type` is {name}. Known ones: {', '.join(_KINDS)}.")
    return _KINDS[name]


def _modalities(first_dir: Path, modules: Modules, config: Mapping[str, Any]) -> frozenset[str]:
    """Returns the input types of a model; empty if the first module is for others.

    Raises:
        ValueError: texts aren't tokenized as they are.
    """
    if modules[0][0] == "CLIPModel":
        return frozenset(("text", "image") if "vision_config" in config else ())
    settings = read_json(first_dir / _TRANSFORMER_SETTINGS, default={})
    known = settings.get("modality_config") or {}
    if "message" in known or settings.get("processing_kwargs"):
        raise ValueError(
            "Its inputs are rendered by a chat template, or processed with `processing_kwargs` in "
            f"{_TRANSFORMER_SETTINGS}, which isn't supported."
        )
    image = str(known.get("image", {}).get("method", ""))
    return frozenset(("text", "image") if image == "get_image_features" else ("text",))


def _own_prompts(kind: Kind, settings: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the prompts of a model's files.

    PyLate stores those of a multi-vector model apart, as prefixes.
    """
    prompts: dict[str, str] = settings.get("prompts") or {}
    if kind == "multi-vector":
        prompts = {name: prompt or "" for name, prompt in (DEFAULT_PROMPTS | prompts).items()}
        for name in DEFAULT_PROMPTS:
            prefix = settings.get(f"{name}_prefix") or ""
            prompts[name] = prefix + prompts[name].removeprefix(prefix)
    return prompts or DEFAULT_PROMPTS


def _determining_files(
    first_dir: Path, kind: Kind, settings: Mapping[str, Any], modalities: frozenset[str]
) -> Mapping[str, Any] | None:
    """Returns what determines the outputs of a model besides what determines vectors of texts.

    None: nothing.
    """
    if kind == "dense" and "image" not in modalities:
        return None
    ignored = ("__version__", "activation_fn", "similarity_fn_name")
    files = (first_dir / name for name in _KIND_FILES)
    return {
        "kind": kind,
        "settings": {key: value for key, value in settings.items() if key not in ignored},
        "files": {file.name: _sha256(file) for file in files if file.is_file()},
    }


def _limit(first_dir: Path, kind: Kind, modules: Modules, settings: Mapping[str, Any]) -> int:
    """Returns the token limit of texts; of documents, if queries have another."""
    if _is_static(modules):
        return _static_max_tokens(first_dir)
    if kind == "multi-vector":
        own = read_json(first_dir / _TRANSFORMER_SETTINGS, default={})
        if length := own.get("document_length") or settings.get("document_length"):
            return int(length)
    return _max_tokens(first_dir)


def _module(path: Path, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns class name and configuration of a module; the first one's is in the root.

    Raises:
        ValueError: the module is outside the model's folder.
    """
    folder = PurePath(entry["path"])
    if folder.is_absolute() or ".." in folder.parts:
        raise ValueError(f"modules.json names {str(folder)!r}, which isn't in the model's folder.")
    name = entry["type"].rpartition(".")[2]
    if not entry["path"]:
        return name, {}
    return name, read_json(path / entry["path"] / "config.json", default={})


def _weight_files(path: Path, first_module_dir: Path, module_dirs: list[Path]) -> list[Path]:
    """Returns the weight files: the first module's, then those of the other modules.

    Raises:
        FileNotFoundError: the first module has none.
        ValueError: a list of shards names a file outside its folder.
    """
    for folder in module_dirs:
        _check_shards(folder)
    for pattern in ("*.safetensors", _PICKLED_WEIGHTS):
        files = sorted(first_module_dir.glob(pattern))
        if files:
            files += [file for file in sorted(path.glob(f"*/{pattern}")) if file not in files]
            return files + _other_weights(module_dirs, {file.parent for file in files})
    raise FileNotFoundError(
        f"{path.name} has no weights (`*.safetensors` or `{_PICKLED_WEIGHTS}`)."
    )


def _other_weights(module_dirs: list[Path], known: set[Path]) -> list[Path]:
    """Returns the files of modules whose weights are in another format than the first one's."""
    found: list[Path] = []
    for folder in dict.fromkeys(module_dirs):
        if folder not in known:
            found += sorted(folder.glob("*.safetensors")) or sorted(folder.glob(_PICKLED_WEIGHTS))
    return found


def _check_shards(folder: Path) -> None:
    """Checks that all shards are in `folder`: the digests of others would not be known."""
    for index in folder.glob("*.index.json"):
        for name in set(read_json(index).get("weight_map", {}).values()):
            if Path(name).name != name:
                raise ValueError(f"{index.name} names {name!r}, which isn't in its folder.")


def _static_max_tokens(path: Path) -> int:
    """Returns the limit of the tokenizer's file, which sentence-transformers applies, if any."""
    truncation = read_json(path / "tokenizer.json").get("truncation") or {}
    return int(truncation.get("max_length", _STATIC_MAX_TOKENS))


def _max_tokens(path: Path) -> int:
    limit = read_json(path / "sentence_bert_config.json", default={}).get("max_seq_length")
    if limit:
        return int(limit)
    tokenizer = read_json(path / "tokenizer_config.json", default={})
    config = read_json(path / "config.json")
    config = config.get("text_config") or config
    positions = config.get("max_position_embeddings", 512)
    return int(min(tokenizer.get("model_max_length") or positions, positions))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
