"""A `VectorIndex` in a directory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedserve_client.errors import FileError
from embedserve_client.files.source import Source
from embedserve_client.index_files import (
    IndexData,
    import_faiss,
    open_metadata,
    read_manifest,
    read_vectors,
    replace_vectors,
)
from embedserve_client.migration.agreement import Sample
from embedserve_client.migration.file_store import FileStore
from embedserve_client.migration.staged_vectors import StagedVectors
from embedserve_client.space import Space
from embedserve_client.vectors import unit_length

#: Options of the texts that queries must share, as in `VectorIndex.build`.
_QUERY_OPTIONS = ("dimensions", "model")
_BLOCK_ROWS = 16384
#: Metadata that name a document: an address, a path, a UUID or a number.
_IDENTIFIER = re.compile(r"[a-z][a-z0-9+.-]*://\S+|[./~]*/\S+|[0-9a-fA-F-]{32,36}|\d+")
_CHECKED_METADATA = 100


class IndexStore(FileStore):
    """An index whose texts are its metadata, a field of them, or a file."""

    is_nullable = False

    def __init__(
        self,
        path: Path,
        column: str,
        texts: Source | None = None,
        output: Path | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Opens the index and what an interrupted run has left.

        Args:
            path: the directory.
            column: the field with the text, where metadata are objects.
            texts: a text for each vector; None: they are in the metadata.
            output: a directory for the new index; None: the new one replaces the old one.
            restart: discards the vectors of an interrupted run.

        Raises:
            FileError: there is no index, it holds no texts, or another program migrates it.
        """
        try:
            import_faiss()
        except ImportError as error:
            raise FileError(str(error)) from None
        self._path, self._output, self._column = path, output, column
        self._manifest = manifest = read_manifest(path)
        if output is not None and output.exists():
            raise FileError(f"{output} exists. Use another directory.")
        self.name = str(path)
        self.size = manifest.count
        if not self.size:
            raise FileError(f"{self.name} holds no vectors.")
        self.space = None if manifest.space is None else Space.parse(manifest.space)
        self._metadata = open_metadata(path, manifest)
        try:
            if texts is None:
                self._check_texts()
            source: dict[str, Any] = {"vectors": manifest.vectors_sha256, "column": column}
            source["metadata"] = manifest.metadata_sha256
            source["texts"] = None if texts is None else texts.fingerprint()
            staged = StagedVectors(path, source, restart=restart)
        except BaseException:
            self._metadata.close()
            raise
        super().__init__(staged, texts)

    def sample(self, size: int, seed: int) -> Sample:
        """Returns random rows in random order, by the seed."""
        self._staged.finish()
        count = min(size, self.size)
        order = np.random.default_rng(seed).choice(self.size, count, replace=False)
        rows = order.tolist()
        texts = self._texts_of({*rows})
        old = read_vectors(self._path, self._manifest, rows)
        return Sample([texts[i] for i in rows], old, np.asarray(self._staged.array()[order]))

    def switch(self) -> bool:
        """Writes the new vectors and replaces the manifest; metadata stay as they are."""
        assert self.pin is not None, "`switch` before `begin`. A bug."
        self._staged.finish()
        staged = self._staged.array()
        vectors = import_faiss().IndexFlatIP(staged.shape[1])
        for start in range(0, len(staged), _BLOCK_ROWS):
            vectors.add(unit_length(np.asarray(staged[start : start + _BLOCK_ROWS])))
        options = {name: self.pin.options.get(name) for name in _QUERY_OPTIONS}
        data = IndexData(
            vectors,
            [],
            Space.parse(self.pin.space),
            self.pin.model,
            {name: value for name, value in options.items() if value is not None},
        )
        replace_vectors(self._path, self._manifest, data, self._output)
        self._staged.remove()
        return True

    def summary(self) -> str:
        """Returns where the new index is, if the old one was kept."""
        return "" if self._output is None else f"The new index is {self._output}."

    def close(self) -> None:
        """Closes the files."""
        self._metadata.close()
        super().close()

    def _check_texts(self) -> None:
        """Checks that the first metadata are texts.

        Raises:
            FileError: there are none, or all of them look like names of documents.
        """
        values = self._own_texts(0)
        first = [text for _, text in zip(range(_CHECKED_METADATA), values, strict=False)]
        if all(_IDENTIFIER.fullmatch(text) for text in first):
            raise FileError(
                f"The metadata of {self.name} look like addresses or identifiers, not like the "
                "texts of its vectors. Name a file with one text for each vector: --texts FILE."
            )

    def _own_texts(self, done: int) -> Iterator[str]:
        self._metadata.seek(0)
        for i, line in enumerate(self._metadata):
            if i < done:
                continue
            value = json.loads(line)
            text = value.get(self._column) if isinstance(value, dict) else value
            if not isinstance(text, str):
                fields = f" in field {self._column!r}" if isinstance(value, dict) else ""
                raise FileError(
                    f"{self.name} has no text{fields} in the metadata of vector {i}. Name the "
                    "field with the text (--column NAME), or a file with one text for each vector "
                    "(--texts FILE)."
                )
            yield text
