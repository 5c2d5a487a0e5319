"""The files of a model → `ModelSpec`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedserve_client.model_files import ModelFiles, Modules, read_json
from serve_app.config import ModelConfig
from serve_app.errors import ModelSourceError
from serve_app.model_spec import ModelSpec
from serve_app.models.file_digests import FileDigests
from serve_app.tasks import Task

#: sentence-transformers' names of pooling modes → text-embeddings-inference's names.
_POOLING_NAMES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last_token"}
#: The modules of each kind besides dense that can be served. Others change the inputs.
_KNOWN_MODULES = {
    "cross-encoder": {"Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"},
    "sparse": {
        *("Transformer", "MLMTransformer", "SpladePooling"),
        *("Pooling", "Dense", "Normalize", "SparseAutoEncoder"),
    },
    "multi-vector": {"Transformer", "Dense", "MultiVectorMask", "Normalize"},
}
#: Classes of activations → their names in `ModelSpec.activation`.
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "identity"}


def read_spec(path: Path, config: ModelConfig, precision: str) -> ModelSpec:
    """Returns the spec of a model.

    Args:
        path: the directory of the model.
        config: names the model, and replaces some of its properties.
        precision: the precision that the engine computes at; part of the space id.

    Raises:
        ModelSourceError: the weights don't match `model.sha256`, or code isn't pinned.
        OSError: a file is missing or can't be read.
        ValueError: a file is malformed, or the model is of an unsupported kind.
        KeyError: a setting is missing.
    """
    files = ModelFiles.read(path, config.max_tokens, config.prompts, FileDigests())
    _check_modules(files)
    if config.trust_remote_code:
        _check_code_is_pinned(files)
    weights_file, sha256 = next(iter(files.weights.items()))
    if config.sha256 is not None and sha256 != config.sha256:
        raise ModelSourceError(
            f"The weights of {config.name} don't match `model.sha256`: they have {sha256}, the "
            f"configuration expects {config.sha256}. Reinstall the model, or correct the setting."
        )
    labels = _labels(files)
    return ModelSpec(
        name=config.name,
        aliases=config.aliases,
        dim=_dim(files, weights_file, labels),
        max_tokens=files.max_tokens,
        prompts=files.prompts,
        default_prompt=_default_prompt(files),
        weights_sha256=sha256,
        space_id=f"{files.family}-{precision}",
        created_s=int(weights_file.stat().st_mtime),
        unit_length=files.modules[-1][0] == "Normalize",
        pooling="mean" if files.is_static else _pooling(files.modules),
        is_static=files.is_static,
        kind=files.kind,
        tasks=_tasks(files, labels),
        labels=labels,
        activation=_activation(files, labels, trusted=config.trust_remote_code),
        dimensions=tuple(map(int, files.config.get("matryoshka_dimensions") or ())),
        prompt_sources=files.prompt_sources,
    )


def _check_modules(files: ModelFiles) -> None:
    """Raises ValueError if a module of the model can't be served."""
    known = _KNOWN_MODULES.get(files.kind)
    for name, _ in files.modules:
        if known is not None and name not in known:
            raise ValueError(f"Its module {name} can't be served in a {files.kind} model.")


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


def _tasks(files: ModelFiles, labels: tuple[str, ...]) -> tuple[Task, ...]:
    if files.kind == "cross-encoder":
        return ("rerank", "classify") if len(labels) == 1 else ("classify",)
    if files.kind == "sparse":
        return ("embed_sparse",)
    if files.kind == "multi-vector":
        return ("embed_tokens", "rerank")
    if "image" in files.modalities:
        return ("embed", "embed_images")
    return ("embed",) if files.is_static else ("embed", "embed_tokens")


def _default_prompt(files: ModelFiles) -> str | None:
    """Returns the prompt of inputs without a type: for texts of multi-vector models, documents'."""
    if files.kind == "multi-vector":
        return files.default_prompt or "document"
    return files.default_prompt


def _labels(files: ModelFiles) -> tuple[str, ...]:
    """Returns the labels of a cross-encoder, in the order of its logits."""
    if files.kind != "cross-encoder":
        return ()
    names: Mapping[str, str] = files.config.get("id2label") or {}
    count = len(names) or int(files.config.get("num_labels", 2))
    for module, settings in files.modules:
        if module == "Dense" and settings.get("module_output_name") == "scores":
            count = int(settings["out_features"])
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))


def _activation(files: ModelFiles, labels: tuple[str, ...], *, trusted: bool) -> str:
    """Returns the activation that sentence-transformers applies to the logits of a cross-encoder.

    It ignores one that isn't PyTorch's own, unless the model's code is trusted.

    Raises:
        ValueError: it is an unknown one.
    """
    if files.kind != "cross-encoder":
        return "identity"
    own = files.config.get("sentence_transformers") or {}
    name = (
        files.settings.get("activation_fn")
        or own.get("activation_fn")
        or files.config.get("sbert_ce_default_activation_function")
    )
    if name is None or not (trusted or str(name).startswith("torch.")):
        return "sigmoid" if len(labels) == 1 else "identity"
    activation = _ACTIVATIONS.get(str(name).rpartition(".")[2])
    if activation is None:
        raise ValueError(f"Its activation is {name}. Known ones: {', '.join(_ACTIVATIONS)}.")
    return activation


def _dim(files: ModelFiles, weights_file: Path, labels: tuple[str, ...]) -> int:
    """Returns the width of the rows that the model returns."""
    if files.is_static:
        return _static_dim(weights_file)
    if files.kind == "cross-encoder":
        return len(labels)
    if files.kind == "sparse":
        autoencoder = dict(files.modules).get("SparseAutoEncoder")
        return int(autoencoder["hidden_dim"] if autoencoder else files.config["vocab_size"])
    if "image" in files.modalities:
        return _joint_dim(files.config)
    return _dense_dim(files)


def _joint_dim(config: Mapping[str, Any]) -> int:
    """Returns the width of the space that texts and images share."""
    text = config["text_config"]
    return int(config.get("projection_dim") or text.get("projection_size") or text["hidden_size"])


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


def _dense_dim(files: ModelFiles) -> int:
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
