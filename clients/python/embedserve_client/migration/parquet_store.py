"""A Parquet file with a column of vectors."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedserve_client.errors import FileError
from embedserve_client.files.source import Source, open_parquet
from embedserve_client.migration.agreement import Sample
from embedserve_client.migration.file_store import FileStore
from embedserve_client.migration.staged_vectors import StagedVectors
from embedserve_client.space import Space
from embedserve_client.vectors import Float32

_BATCH_ROWS = 4096
_ROW_GROUP_ROWS = 16384


class ParquetStore(FileStore):
    """A file whose rows have a text and a vector. The other columns stay as they are."""

    is_nullable = True

    def __init__(
        self,
        path: Path,
        column: str,
        vector_column: str,
        texts: Source | None = None,
        output: Path | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Opens the file and what an interrupted run has left.

        Args:
            path: the file.
            column: the column with the texts.
            vector_column: the column with the vectors.
            texts: a text for each row; None: they are in the column.
            output: the file to write; None: the new one replaces the old one.
            restart: discards the vectors of an interrupted run.

        Raises:
            FileError: the file lacks a column, can't be read, or another program migrates it.
        """
        self._path, self._output = path, output
        self._column, self._vector_column = column, vector_column
        self.name = str(path)
        if output is not None and output.exists():
            raise FileError(f"{output} exists. Use another file.")
        file = open_parquet(self.name)
        schema = file.schema_arrow
        self._check_columns(schema, needs_texts=texts is None)
        self.size = file.metadata.num_rows
        if not self.size:
            raise FileError(f"{self.name} holds no rows.")
        space = (schema.metadata or {}).get(b"embedserve.space", b"").decode()
        self.space = Space.parse(space) if space else None
        self._fingerprint = self._read_fingerprint()
        source: dict[str, Any] = {"file": self._fingerprint, "columns": [column, vector_column]}
        source["texts"] = None if texts is None else texts.fingerprint()
        super().__init__(StagedVectors(path, source, restart=restart), texts)

    def sample(self, size: int, seed: int) -> Sample:
        """Returns random rows in random order, by the seed."""
        self._staged.finish()
        new = self._staged.array()
        order = np.random.default_rng(seed).choice(self.size, min(size, self.size), replace=False)
        wanted = set(order.tolist())
        olds: dict[int, Float32] = {}
        for i, value in enumerate(self._old_vectors()):
            if i in wanted and value is not None:
                olds[i] = np.asarray(value.values.to_numpy(zero_copy_only=False), dtype=np.float32)
        texts = self._texts_of(wanted)
        kept = [i for i in order.tolist() if i in olds and np.isfinite(new[i]).all()]
        try:
            old = np.stack([olds[i] for i in kept]) if kept else np.empty((0, 1), np.float32)
        except ValueError:
            raise FileError(
                f"The vectors in column {self._vector_column!r} of {self.name} differ in length, "
                "so they can't be compared with new ones. Leave the report out: --sample 0."
            ) from None
        return Sample([texts[i] for i in kept], old, np.asarray(new[kept]))

    def switch(self) -> bool:
        """Writes a file with the new vectors, and replaces the old one by it."""
        self._staged.finish()
        combined = self._staged.directory / "combined.parquet"
        try:
            self._write_file(combined)
            shutil.copymode(self._path, combined)
            with combined.open("rb+") as written:
                os.fsync(written.fileno())
            if self._read_fingerprint() != self._fingerprint:
                raise FileError(f"{self.name} has changed meanwhile. Start over with --restart.")
            os.replace(combined, self._output or self._path)
        except OSError as error:
            raise FileError(f"Can't write {self._output or self._path}: {error}") from None
        self._staged.remove()
        return True

    def summary(self) -> str:
        """Returns where the new file is, if the old one was kept."""
        return "" if self._output is None else f"The new file is {self._output}."

    def _check_columns(self, schema: Any, *, needs_texts: bool) -> None:
        import pyarrow.types as types

        columns = ", ".join(schema.names)
        if needs_texts and self._column not in schema.names:
            raise FileError(
                f"{self.name} has no column {self._column!r} with texts, only {columns}. Select "
                "one (--column NAME), or name a file with one text for each row (--texts FILE)."
            )
        if self._vector_column not in schema.names:
            raise FileError(
                f"{self.name} has no column {self._vector_column!r} with vectors, only {columns}. "
                "Select one: --vector-column NAME."
            )
        kind = schema.field(self._vector_column).type
        is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        if not is_list or not types.is_floating(kind.value_type):
            raise FileError(
                f"Column {self._vector_column!r} of {self.name} holds {kind}, not vectors."
            )

    def _read_fingerprint(self) -> dict[str, Any]:
        status = self._path.stat()
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "rows": self.size}

    def _own_texts(self, done: int) -> Iterator[str]:
        row = 0
        for batch in open_parquet(self.name).iter_batches(_BATCH_ROWS, columns=[self._column]):
            skip = max(0, done - row)
            for i, text in enumerate(batch.column(0)[skip:].to_pylist(), row + skip + 1):
                if text is not None and not isinstance(text, str):
                    raise FileError(
                        f"{self.name}, row {i}, has no text in column {self._column!r}. Select "
                        "another one: --column NAME."
                    )
                yield text or ""
            row += batch.num_rows

    def _old_vectors(self) -> Iterator[Any]:
        """Yields pyarrow's list scalars, and None for null."""
        columns = [self._vector_column]
        for batch in open_parquet(self.name).iter_batches(_BATCH_ROWS, columns=columns):
            for scalar in batch.column(0):
                yield scalar if scalar.is_valid else None

    def _write_file(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        assert self.pin is not None, "`switch` before `begin`. A bug."
        file, vectors = open_parquet(self.name), self._staged.array()
        at = file.schema_arrow.names.index(self._vector_column)
        field = file.schema_arrow.field(at)
        if pa.types.is_fixed_size_list(field.type):
            field = field.with_type(pa.list_(field.type.value_field, self.pin.dim))
        metadata = {
            **(file.schema_arrow.metadata or {}),
            b"embedserve.space": self.pin.space.encode(),
            b"embedserve.model": self.pin.model.encode(),
        }
        schema = file.schema_arrow.set(at, field).with_metadata(metadata)
        others = [name for name in schema.names if name != self._vector_column]
        codec = file.metadata.row_group(0).column(0).compression.lower()
        compression = "none" if codec == "uncompressed" else codec
        row = 0
        with pa.parquet.ParquetWriter(path, schema, compression=compression) as writer:
            for batch in file.iter_batches(_ROW_GROUP_ROWS, columns=others):
                column = _list_array(np.asarray(vectors[row : row + batch.num_rows]), field.type)
                row += batch.num_rows
                columns = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
                columns[self._vector_column] = column
                arrays = [columns[name] for name in schema.names]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        if row != self.size:
            raise FileError(f"{self.name} has changed meanwhile. Start over with --restart.")


def _list_array(vectors: Float32, kind: Any) -> Any:
    """Returns an array of lists of this type; a vector of NaN becomes null."""
    import pyarrow as pa

    missing = np.isnan(vectors).any(axis=1)
    values = pa.array(vectors.reshape(-1)).cast(kind.value_type)
    mask = pa.array(missing)
    dim = vectors.shape[1]
    fixed = pa.FixedSizeListArray.from_arrays(values, dim, mask=mask)
    return fixed if pa.types.is_fixed_size_list(kind) else fixed.cast(kind)
