"""The model in this process, through sentence-transformers: same texts, same family, same vectors.

Its vectors are at fp32. A service that computes at bf16 or fp16 gives vectors within cosine 0.9999
of these, so both may lie in one index; what a service computes otherwise is told apart by the
family.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from embedserve_client.errors import LocalModelError
from embedserve_client.lock import ProcessLock
from embedserve_client.model_files import ROLES, ModelFiles, package_folder
from embedserve_client.space import Space
from embedserve_client.vectors import About, Vectors
from embedserve_client.wire import Options

_BATCH_TEXTS = 32


class LocalModel:
    """A model that is loaded at its first use. Safe from many threads, one at a time."""

    def __init__(self, source: str, *, max_tokens: int | None = None) -> None:
        """A model.

        Args:
            source: a folder, or `package:<module>`, a package that holds one in `model/`.
            max_tokens: longest input where the service was given another than the model's own.
        """
        self.source = source
        self._max_tokens = max_tokens
        self._lock = ProcessLock()
        self._files: ModelFiles | None = None
        self._model: Any = None

    @property
    def space(self) -> Space:
        """The space of its vectors; reads its files, and loads nothing.

        Raises:
            LocalModelError: there are none.
        """
        return Space(self.files.family, "fp32")

    @property
    def files(self) -> ModelFiles:
        """What its files say.

        Raises:
            LocalModelError: they can't be read.
        """
        with self._lock:
            if self._files is None:
                self._files = self._read()
            return self._files

    def embed(self, texts: Sequence[str], options: Options) -> Vectors:
        """Vectors of texts, shape (n, dim).

        Raises:
            LocalModelError: the model can't be loaded, or can't do what is asked.
        """
        files = self.files
        prompt = self._prompt(options.input_type)
        if options.overflow != "end":
            raise LocalModelError(
                f"A local model can't do `overflow={options.overflow!r}`; only the service can."
            )
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not text:
                raise LocalModelError(f"Text {i} is empty, or isn't a string. Leave it out.")
        with self._lock:  # its tokenizer keeps state between its own steps
            values = self._loaded().encode(
                [prompt + text for text in texts],
                prompt="",  # else it would put the model's default one before ours
                batch_size=_BATCH_TEXTS,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        values = self._cut(np.asarray(values, dtype=np.float32), options.dimensions)
        about = About(Space(files.family, "fp32"), options.model or self.source, "local")
        return Vectors(values, about)

    def _prompt(self, input_type: str | None) -> str:
        files = self.files
        name = input_type or files.default_prompt
        if name is None or name in files.prompts:
            return files.prompts.get(name, "") if name else ""
        for names in ROLES:
            if name in names:
                return next((files.prompts[n] for n in names if n in files.prompts), "")
        known = ", ".join(sorted(files.prompts))
        raise LocalModelError(f"The model has no input type {name!r}. Known ones: {known}.")

    def _cut(self, values: Any, dimensions: int | None) -> Any:
        if dimensions is None or dimensions == values.shape[1]:
            return values
        if not 1 <= dimensions <= values.shape[1]:
            raise LocalModelError(f"`dimensions` must be between 1 and {values.shape[1]}.")
        cut = values[:, :dimensions]
        norms = np.linalg.norm(cut, axis=1, keepdims=True)
        return cut / np.where(norms == 0, 1, norms)

    def _read(self) -> ModelFiles:
        kind, _, place = self.source.rpartition(":")
        folder = package_folder(place) if kind == "package" else Path(self.source).expanduser()
        if folder is None or not (folder / "modules.json").is_file():
            raise LocalModelError(
                f"There is no model at {self.source}. Name a sentence-transformers folder, or "
                f"install the package: `pip install {place.replace('_', '-')}`."
            )
        try:
            return ModelFiles.read(folder, self._max_tokens)
        except (OSError, ValueError, KeyError) as error:
            raise LocalModelError(f"The model at {self.source} can't be read: {error!r}") from error

    def _loaded(self) -> Any:
        if self._model is None:
            assert self._files is not None, "Whoever embeds has read the files. This is a bug."
            try:
                from sentence_transformers import SentenceTransformer
            except ImportError as error:
                raise LocalModelError(
                    "A local model needs sentence-transformers: "
                    "pip install 'embedserve-client[local]'"
                ) from error
            model = SentenceTransformer(str(self._files.folder), local_files_only=True)
            model.max_seq_length = self._files.max_tokens
            self._model = model.float().eval()
        return self._model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "max_tokens": self._max_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LocalModel.__init__(self, state["source"], max_tokens=state["max_tokens"])

    @classmethod
    def of(cls, model: "str | Self") -> Self:
        """The model that a user names, by its source or itself."""
        return model if isinstance(model, cls) else cls(str(model))
