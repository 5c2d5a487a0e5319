"""The tables of fields in docs/api.md: each field does what its row says."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_app.config import IngressSettings
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from serve_app.types import Outputs, TextGroup, Vectors
from serve_app.web.app import create_app
from serve_app.web.dialect import all_views, endpoints_by_path
from serve_app.web.dialects import load_dialects
from serve_app.web.schema.fields import Field, ObjectField
from tests.fakes import TEXT_TASKS, FakeBackend

PAGE = Path(__file__).parents[3] / "docs" / "api.md"
#: Four tokens over the limit of the fake model, so that each way to truncate it is visible.
TEXT = "abcdefghijklmnopqrst"
#: The request of each table before a field is added, by its first path.
BASES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": TEXT},
    "/embed with inputs": {"inputs": TEXT},
    "/ with inputs": {"inputs": TEXT},
    "/embed_all": {"inputs": TEXT},
    "/similarity": {"inputs": {"source_sentence": TEXT, "sentences": [TEXT[::-1]]}},
    "/tokenize": {"inputs": "a"},
    "/decode": {"ids": [91, 97, 93]},
    "/v2/embed": {"model": "fake", "input_type": "search_document", "texts": [TEXT]},
    "/v1/tokenize": {"model": "fake", "text": "a"},
    "/v1/detokenize": {"model": "fake", "tokens": [97]},
    "/embeddings": {"input": TEXT},
    "/embed with texts": {"texts": [TEXT]},
    "/embed_sparse": {"inputs": TEXT},
    "/predict": {"inputs": TEXT},
    "/rerank with texts": {"query": "ab", "texts": ["b", TEXT]},
    "/rerank with documents": {"query": "ab", "documents": ["b", TEXT]},
    "/classify": {"input": ["a"]},
    "/v1/multimodalembeddings": {"inputs": [{"content": [{"type": "text", "text": TEXT}]}]},
    "/v2/rerank": {"model": "fake", "query": "ab", "documents": ["b", TEXT]},
    "/v1/rerank": {"query": "ab", "documents": ["b", TEXT]},
    "/score": {"text_1": "ab", "text_2": ["b", TEXT]},
    "/embed/text": {"text": TEXT},
    "/embed/query": {"query": TEXT},
    "/embed/batch": {"texts": [TEXT, "b"]},
    "/v2/models/{model}/infer": {
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]
    },
    "/api/embed": {"model": "fake", "input": TEXT},
    "/api/embeddings": {"model": "fake", "prompt": TEXT},
    "/api/show": {"model": "fake"},
    "/vectors": {"text": TEXT},
}
#: Infinity's error for another modality names neither the field nor the value.
TEXTS_ONLY = "embeds texts only"
#: Members of replies that differ between equal requests.
VOLATILE = {"created", "id", "load_duration", "total_duration"}


class Case(NamedTuple):
    """A field of a table, on one of the paths of its heading."""

    path: str
    base: dict[str, Any]
    fields: dict[str, Any]
    effect: str


def tables() -> Iterator[tuple[list[str], str, list[tuple[dict[str, Any], str]]]]:
    """Yields the paths and the key of the request of each table, and its fields with effects."""
    section = PAGE.read_text("utf-8").partition("\n## Request fields\n")[2].partition("\n## ")[0]
    for table in section.split("\n### ")[1:]:
        heading, *lines = table.splitlines()
        spans = re.findall(r"`(?:POST )?([^`]+)`", heading)
        paths = [span for span in spans if span.startswith("/")]
        key = " with ".join([paths[0], *(span for span in spans if not span.startswith("/"))])
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith('| `"')]
        cells = [(re.findall(r"`([^`]+)`", row[0]), row[1].strip(" |")) for row in rows]
        yield (
            paths,
            key,
            [(json.loads(f"{{{span}}}"), effect) for found, effect in cells for span in found],
        )


TABLES = list(tables())
CASES = [
    pytest.param(Case(path, BASES[key], fields, effect), id=f"{path} {json.dumps(fields)} {effect}")
    for paths, key, rows in TABLES
    for path in paths
    for fields, effect in rows
]


class ScaledBackend(FakeBackend):
    """A backend whose vectors don't have unit length."""

    async def run(self, group: TextGroup) -> Outputs:
        outputs = await super().run(group)
        if isinstance(outputs, Vectors) and group.task == "embed":
            return replace(outputs, values=2 * outputs.values)
        return outputs


def merge(base: Any, fields: Any) -> Any:
    """Returns a JSON value with the members of another; objects and lists of objects are merged."""
    if isinstance(base, dict) and isinstance(fields, dict):
        merged = {key: merge(base.get(key), value) for key, value in fields.items()}
        return {**base, **merged}
    if isinstance(base, list) and isinstance(fields, list) and isinstance(base[0], dict):
        return [merge(item, more) for item, more in zip(base, fields, strict=True)]
    return fields


def without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_volatile(v) for key, v in value.items() if key not in VOLATILE}
    return [without_volatile(v) for v in value] if isinstance(value, list) else value


def outcome(path: str, body: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns all that a request shows of its fields: the reply and what is computed for it."""
    backend = ScaledBackend()
    app = create_app(Catalog([EmbedService(TEXT_TASKS, backend, IngressSettings())]))
    reply = TestClient(app).post(path.replace("{model}", "fake"), json=body)
    content = reply.json()
    returned_id = content.get("id") if "id" in body else None
    truncated = reply.headers.get("x-truncated-inputs")
    computed = [(g.texts, g.prompt, g.use_cache, g.lane) for g in backend.groups]
    return reply.status_code, without_volatile(content), returned_id, truncated, computed


@cache
def base_outcome(path: str, base: str) -> tuple[Any, ...]:
    """Returns the outcome of a table's request without the field of a row."""
    return outcome(path, json.loads(base))


def strings(value: Any) -> Iterator[str]:
    """Yields the names of all members of a JSON value, and all strings in it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("case", CASES)
def test_a_field_has_the_effect_of_its_row(case: Case) -> None:
    without = base_outcome(case.path, json.dumps(case.base))
    assert without[0] == 200
    status, content, *_ = result = outcome(case.path, merge(case.base, case.fields))
    match case.effect:
        case "obeyed":
            # The path has precedence over the field.
            assert (result != without) != ("{model}" in case.path and "model" in case.fields)
        case "ignored":
            assert result == without
        case "rejected":
            assert 400 <= status < 500
            names = (*strings(case.fields), TEXTS_ONLY)
            assert any(name in json.dumps(content) for name in names)
        case other:
            raise AssertionError(other)


def declared_names(fields: Sequence[Field]) -> Iterator[str]:
    """Yields the names of fields, and those inside an object after its own and a period."""
    for field in fields:
        yield field.name
        if isinstance(field, ObjectField) and not field.many:
            yield from (f"{field.name}.{name}" for name in declared_names(field.fields))


def named(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner in named(value))


def test_every_field_that_the_service_reads_has_a_row() -> None:
    loaded = load_dialects()
    routes = [
        *(
            (endpoint.path, endpoint.deciding_key, endpoint.fields)
            for candidates in endpoints_by_path(loaded).values()
            for _, endpoint in candidates
            # The instances of `/vertex` are bodies of `/embed`.
            if endpoint.path != "/vertex"
        ),
        *((view.path, "", view.fields) for _, view in all_views(loaded) if view.fields),
    ]
    listed: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for paths, key, rows in TABLES:
        for path in paths:
            listed[path, key.partition(" with ")[2]].update(
                name for fields, _ in rows for name in named(fields)
            )
    missing = []
    for template, deciding_key, declared in routes:
        path = template.replace(":path", "")
        names = listed[path, deciding_key] or listed[path, ""]
        in_path = set(re.findall(r"{(\w+)}", path))
        missing += [
            f"{path}: {name}" for name in declared_names(declared) if name not in names | in_path
        ]
    assert missing == []


def test_vectors_of_the_model_do_not_have_unit_length() -> None:
    """Otherwise `normalize` would show no effect."""
    _, content, *_ = outcome("/embed", {"inputs": "a", "normalize": False})
    assert np.linalg.norm(content[0]) == pytest.approx(2)
