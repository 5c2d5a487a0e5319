"""A PostgreSQL table with a column of pgvector's vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
import psycopg
from psycopg import sql

from embedserve_client.errors import DatabaseError
from embedserve_client.migration.agreement import Sample
from embedserve_client.migration.pgvector_schema import (
    Table,
    add_column,
    drop_column,
    pin_of,
    read_table,
    switch_columns,
)
from embedserve_client.migration.store import Pin, Row
from embedserve_client.space import Space
from embedserve_client.vectors import Float32

_PAGE_ROWS = 1000
_SAMPLE_PAGE_ROWS = 500
#: With a table's OID below it, the key of the lock that one migration holds.
_LOCK_CLASS = 0x656D6264 << 32
#: After a kill, the server may take a moment to end the session that has the lock.
_LOCK_WAIT = "10s"


class PgVectorStore:
    """A table. New vectors are in a second column until the switch; each batch is a transaction."""

    is_nullable = True

    def __init__(
        self, url: str, table: str, column: str, vector_column: str, *, restart: bool = False
    ) -> None:
        """Connects, and reads the table and what an interrupted run has left.

        Args:
            url: of the database; the password may be in `PGPASSWORD` or `~/.pgpass`.
            table: the name of the table, with its schema or without.
            column: the column with the texts.
            vector_column: the column with the vectors.
            restart: discards the vectors of an interrupted run.

        Raises:
            DatabaseError: there is no such database or table, it can't be migrated, or another
                program migrates it.
        """
        self._connections: list[psycopg.Connection[Any]] = []
        self.name = f"table {table}"
        try:
            with self._errors():
                self._writer, self._reader = self._open(url), self._open(url)
                self._table: Table = read_table(self._writer, table, column, vector_column)
                self._lock()
                if restart:
                    drop_column(self._writer, self._table)
                    self._table = read_table(self._writer, table, column, vector_column)
                self.pin: Pin | None = pin_of(self._table.staged)
                if self._table.staged is not None and self.pin is None:
                    raise DatabaseError(
                        f"Column {self._table.staged_name!r} isn't of a migration. Rename it."
                    )
                self.size = self._count("TRUE")
                self.done = 0 if self.pin is None else self._count("{new} IS NOT NULL")
        except BaseException:
            self.close()
            raise
        old = pin_of(self._table.vector)
        self.space = None if old is None else Space.parse(old.space)

    def begin(self, pin: Pin) -> None:
        """Adds the column of new vectors, unless a run resumes."""
        with self._errors():
            if self.pin is None:
                add_column(self._writer, self._table, pin)
        self.pin = pin

    def rows(self) -> Iterator[Row]:
        """Yields the rows without a new vector, by the primary key.

        A row with neither a text nor an old vector isn't among them.
        """
        table = self._table
        page = table.format(
            "SELECT {key}, {text} FROM {table} WHERE {new} IS NULL AND ({text} <> '' OR {old} IS "
            "NOT NULL) AND {after} ORDER BY {key} LIMIT {limit}",
            after=sql.SQL("TRUE"),
            limit=sql.Literal(_PAGE_ROWS),
        )
        next_page = table.format(
            "SELECT {key}, {text} FROM {table} WHERE {new} IS NULL AND ({text} <> '' OR {old} IS "
            "NOT NULL) AND {key} > %s ORDER BY {key} LIMIT {limit}",
            limit=sql.Literal(_PAGE_ROWS),
        )
        rows: list[Any] = []
        while True:
            with self._errors():
                parameters = [rows[-1][0]] if rows else None
                rows = self._reader.execute(next_page if rows else page, parameters).fetchall()
            if not rows:
                return
            for key, text in rows:
                yield Row(key, text or "")

    def write(self, rows: Sequence[Row], vectors: Float32) -> int:
        """Stores vectors in one transaction, of rows whose text is still the same."""
        kept = [(row, vector) for row, vector in zip(rows, vectors, strict=True) if row.text]
        statement = self._table.format(
            "UPDATE {table} SET {new} = source.vector::{type} "
            "FROM unnest(%s::{keys}[], %s::text[], %s::text[]) AS source(key, text, vector) "
            "WHERE {table}.{key} = source.key AND {table}.{text} = source.text "
            "AND {table}.{new} IS NULL",
            keys=sql.SQL(self._table.key.full_type),  # of the catalog
        )
        literals = [
            orjson.dumps(np.ascontiguousarray(vector), option=orjson.OPT_SERIALIZE_NUMPY).decode()
            for _, vector in kept
        ]
        keys, texts = [row.key for row, _ in kept], [row.text for row, _ in kept]
        with self._errors():
            return self._writer.execute(statement, [keys, texts, literals]).rowcount

    def save(self) -> None:
        """Does nothing: each batch is durable."""

    def sample(self, size: int, seed: int) -> Sample:
        """Returns rows in an order by a hash of key and seed."""
        statement = self._table.format(
            "SELECT {text}, {old}::text, {new}::text FROM {table} "
            "WHERE {old} IS NOT NULL AND {new} IS NOT NULL "
            "ORDER BY md5({key}::text || {seed}), {key} LIMIT {size}",
            seed=sql.Literal(str(seed)),
            size=sql.Literal(size),
        )
        texts, old, new = list[str](), list[Float32](), list[Float32]()
        with (
            self._errors(),
            self._reader.transaction(),
            self._reader.cursor("embedserve_sample") as cursor,
        ):
            cursor.itersize = _SAMPLE_PAGE_ROWS
            for text, old_vector, new_vector in cursor.execute(statement):
                texts.append(text)
                old.append(np.array(orjson.loads(old_vector), dtype=np.float32))
                new.append(np.array(orjson.loads(new_vector), dtype=np.float32))
        if not texts:
            return Sample([], np.empty((0, 1), np.float32), np.empty((0, 1), np.float32))
        if len({len(vector) for vector in old}) > 1:
            raise DatabaseError(
                f"The old vectors of {self.name} differ in length, so they can't be compared with "
                "new ones. Leave the report out: --sample 0."
            )
        return Sample(texts, np.stack(old), np.stack(new))

    def switch(self) -> bool:
        """Renames both columns in one transaction, unless a row has been added or changed."""
        with self._errors():
            return switch_columns(self._writer, self._table)

    def summary(self) -> str:
        """Returns where the old vectors are, and what is missing."""
        return (
            f"The old ones are in column {self._table.old_name!r}; drop it when they are no longer "
            "needed. Create the indexes that searches use on the new column."
        )

    def close(self) -> None:
        """Closes the connections; a lock ends with them."""
        for connection in self._connections:
            connection.close()

    def _open(self, url: str) -> psycopg.Connection[Any]:
        connection = psycopg.connect(url, autocommit=True, connect_timeout=10)
        self._connections.append(connection)
        return connection

    def _lock(self) -> None:
        try:
            with self._writer.transaction():
                self._writer.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
                self._writer.execute("SELECT pg_advisory_lock(%s)", [_LOCK_CLASS | self._table.oid])
        except psycopg.errors.LockNotAvailable:
            raise DatabaseError(f"Another program migrates {self.name}.") from None

    def _count(self, condition: Any) -> int:
        statement = self._table.format("SELECT count(*) FROM {table} WHERE " + condition)
        row = self._writer.execute(statement).fetchone()
        assert row is not None, "An aggregate without a row."
        return int(row[0])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            # The detail of an error may quote a row.
            reason = error.diag.message_primary or str(error).splitlines()[0]
            raise DatabaseError(f"PostgreSQL: {reason}") from None
