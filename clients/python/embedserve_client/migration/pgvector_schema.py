"""The table of a pgvector index: what the catalog says of it, and the changes of a migration.

During a migration the table has a second column of vectors, whose comment says which space they
are of, and a trigger that drops a new vector when its text changes.
"""

import json
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import Connection, sql

from embedserve_client.errors import DatabaseError
from embedserve_client.migration.store import Pin

_TEXT_TYPES = ("text", "varchar", "bpchar", "citext")
_VECTOR_TYPES = ("vector", "halfvec")
_LOCK_TIMEOUT = "10s"
_MAX_NAME_BYTES = 63

_COLUMNS = """
SELECT a.attname, a.attnum, a.attnotnull, t.typname, n.nspname, col_description(c.oid, a.attnum),
       format_type(a.atttypid, NULL)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE c.oid = %s AND a.attnum > 0 AND NOT a.attisdropped
"""
_PRIMARY_KEY = """
SELECT a.attname FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = %s AND i.indisprimary AND i.indnkeyatts = 1
"""
#: Whatever refers to a column would keep the old vectors after the switch.
_DEPENDENTS = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_depend d
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s AND d.refobjsubid = %s
AND NOT EXISTS (SELECT 1 FROM pg_constraint k
                WHERE d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.contype = 'n')
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    number: int
    is_required: bool
    type: str
    type_schema: str
    comment: str | None
    full_type: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table with texts and vectors."""

    oid: int
    name: sql.Composed  #: with its schema, quoted
    schema: str
    key: Column
    text: Column
    vector: Column
    staged: Column | None  #: the new vectors; None: no migration has begun

    @property
    def staged_name(self) -> str:
        """The name of the column of new vectors, until the switch."""
        return f"{self.vector.name}_migration"

    @property
    def old_name(self) -> str:
        """The name of the column of old vectors, after the switch."""
        return f"{self.vector.name}_old"

    @property
    def trigger(self) -> str:
        """The name of the trigger and of its function."""
        return f"embedserve_migration_{self.oid}"

    def format(self, template: LiteralString, **more: sql.Composable) -> sql.Composed:
        """Returns SQL with the quoted names of this table."""
        return sql.SQL(template).format(
            table=self.name,
            key=sql.Identifier(self.key.name),
            text=sql.Identifier(self.text.name),
            old=sql.Identifier(self.vector.name),
            new=sql.Identifier(self.staged_name),
            kept=sql.Identifier(self.old_name),
            type=sql.Identifier(self.vector.type_schema, self.vector.type),
            trigger=sql.Identifier(self.trigger),
            function=sql.Identifier(self.schema, self.trigger),
            **more,
        )


def read_table(connection: Connection[Any], name: str, text: str, vector: str) -> Table:
    """Reads what a table consists of.

    Raises:
        DatabaseError: there is no such table, or it can't be migrated.
    """
    found = connection.execute(
        "SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)",
        [name],
    ).fetchone()
    if found is None or found[3] != "r":
        raise DatabaseError(f"There is no ordinary table {name!r}. Select one: --table NAME.")
    oid, schema, relation, _ = found
    columns = {row[0]: Column(*row) for row in connection.execute(_COLUMNS, [oid])}
    key = connection.execute(_PRIMARY_KEY, [oid]).fetchone()
    if key is None:
        raise DatabaseError(f"Table {name} has no primary key of one column.")
    names = ", ".join(columns)
    if text not in columns or columns[text].type not in _TEXT_TYPES:
        raise DatabaseError(
            f"Table {name} has no column {text!r} of texts, only {names}. Select one (--column "
            "NAME), or add one and fill it: a table's rows have no order for --texts."
        )
    if vector not in columns or columns[vector].type not in _VECTOR_TYPES:
        raise DatabaseError(
            f"Table {name} has no column {vector!r} of vectors, only {names}. Select one: "
            "--vector-column NAME."
        )
    table = Table(
        oid,
        sql.Composed([sql.Identifier(schema, relation)]),
        schema,
        columns[key[0]],
        columns[text],
        columns[vector],
        columns.get(f"{vector}_migration"),
    )
    if table.old_name in columns:
        raise DatabaseError(
            f"Table {name} has a column {table.old_name!r} already, which an earlier migration may "
            "have left. Drop or rename it."
        )
    if len(table.staged_name.encode()) > _MAX_NAME_BYTES:
        raise DatabaseError(f"The name of column {vector!r} is too long. Rename it.")
    dependents = [row[0] for row in connection.execute(_DEPENDENTS, [oid, table.vector.number])]
    if dependents:
        raise DatabaseError(
            f"These would keep the old vectors: {', '.join(sorted(dependents))}. Drop them, "
            "migrate, and create them again for the new vectors."
        )
    return table


def pin_of(column: Column | None) -> Pin | None:
    """Returns what the comment of a column says of its vectors; None: nothing."""
    try:
        content = json.loads((column.comment if column else None) or "")
        return Pin(**content["embedserve"])
    except (ValueError, KeyError, TypeError):
        return None


def _comment(pin: Pin) -> sql.Literal:
    content = {"space": pin.space, "model": pin.model, "dim": pin.dim, "options": pin.options}
    return sql.Literal(json.dumps({"embedserve": content}))


def add_column(connection: Connection[Any], table: Table, pin: Pin) -> None:
    """Adds the column of new vectors and the trigger, in one transaction."""
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        for statement in (
            "ALTER TABLE {table} ADD COLUMN {new} {type}({dim})",
            "COMMENT ON COLUMN {table}.{new} IS {comment}",
            "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $body$ "
            "BEGIN NEW.{new} := NULL; RETURN NEW; END $body$",
            "CREATE TRIGGER {trigger} BEFORE UPDATE OF {text} ON {table} FOR EACH ROW "
            "WHEN (OLD.{text} IS DISTINCT FROM NEW.{text}) EXECUTE FUNCTION {function}()",
        ):
            connection.execute(
                table.format(statement, dim=sql.Literal(pin.dim), comment=_comment(pin))
            )


def drop_column(connection: Connection[Any], table: Table) -> None:
    """Removes the column of new vectors and the trigger."""
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        connection.execute(table.format("DROP TRIGGER IF EXISTS {trigger} ON {table}"))
        connection.execute(table.format("DROP FUNCTION IF EXISTS {function}()"))
        connection.execute(table.format("ALTER TABLE {table} DROP COLUMN IF EXISTS {new}"))


def switch_columns(connection: Connection[Any], table: Table) -> bool:
    """Gives the new column the name of the old one; False: a row lacks its new vector."""
    with connection.transaction():
        connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        connection.execute(table.format("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        missing = connection.execute(
            table.format("SELECT 1 FROM {table} WHERE {new} IS NULL AND {text} <> '' LIMIT 1")
        ).fetchone()
        if missing is not None:
            return False
        statements: list[LiteralString] = [
            "DROP TRIGGER {trigger} ON {table}",
            "DROP FUNCTION {function}()",
            "ALTER TABLE {table} RENAME COLUMN {old} TO {kept}",
            "ALTER TABLE {table} RENAME COLUMN {new} TO {old}",
        ]
        if table.vector.is_required:
            statements.append("ALTER TABLE {table} ALTER COLUMN {kept} DROP NOT NULL")
            statements.append("ALTER TABLE {table} ALTER COLUMN {old} SET NOT NULL")
        for statement in statements:
            connection.execute(table.format(statement))
    return True
