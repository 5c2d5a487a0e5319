from dataclasses import replace

import pytest

from serve_app.config import IngressSettings
from serve_app.errors import ModelNotFound, Unavailable, UnsupportedOperation
from serve_app.inputs import TextPair
from serve_app.jobs import EmbedJob, ScoreJob
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from tests.fakes import SPEC, FakeBackend

SECOND = replace(SPEC, name="org/second", aliases=("second",), space_id="beef-fp32")
RERANKER = replace(
    SPEC,
    name="org/reranker",
    aliases=(),
    kind="cross-encoder",
    tasks=("rerank", "classify"),
    space_id="cafe-fp32",
)
CLASSIFIER = replace(
    RERANKER,
    name="org/classifier",
    tasks=("classify",),
    labels=("bad", "good"),
    space_id="feed-fp32",
)


def service(spec: object, backend: FakeBackend | None = None) -> EmbedService:
    return EmbedService(spec, backend or FakeBackend(), IngressSettings())  # type: ignore[arg-type]


CATALOG = Catalog([service(spec) for spec in (SPEC, RERANKER, SECOND)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/fake", "org/fake"),
        ("fake", "org/fake"),
        ("second", "org/second"),
        ("org/reranker", "org/reranker"),
    ],
)
def test_a_model_is_served_under_its_names(name: str, expected: str) -> None:
    assert CATALOG.resolve(name).spec.name == expected


def test_an_unknown_model_is_an_error_that_lists_the_served_ones() -> None:
    with pytest.raises(ModelNotFound, match="'org/fake', 'org/reranker', 'org/second'"):
        CATALOG.resolve("text-embedding-3-small")


def test_a_request_without_a_model_gets_the_first_one_that_supports_the_task() -> None:
    assert CATALOG.resolve(None, "embed").spec.name == "org/fake"
    assert CATALOG.resolve(None, "rerank").spec.name == "org/reranker"
    assert CATALOG.resolve(None).spec.name == "org/fake"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_reranker_classifies_by_default_only_if_there_is_no_classifier(
    order: tuple[int, int],
) -> None:
    models = [service(RERANKER), service(CLASSIFIER)]
    both = [models[i] for i in order]
    assert Catalog(both).resolve(None, "classify").spec.name == "org/classifier"
    assert Catalog(both).resolve(None, "rerank").spec.name == "org/reranker"
    assert Catalog([models[0]]).resolve(None, "classify").spec.name == "org/reranker"
    chosen = Catalog(both, defaults={"classify": "org/reranker"})
    assert chosen.resolve(None, "classify").spec.name == "org/reranker"


def test_the_default_is_the_first_model_whose_main_task_it_is() -> None:
    colbert = replace(SPEC, name="org/colbert", aliases=(), tasks=("embed_tokens", "rerank"))
    catalog = Catalog([service(spec) for spec in (SPEC, colbert, RERANKER, SECOND)])
    names = {task: service.spec.name for task, service in catalog.defaults.items()}
    assert names == {
        "embed": "org/fake",
        "embed_tokens": "org/colbert",
        "rerank": "org/reranker",
        "classify": "org/reranker",
    }


def test_the_default_of_a_task_can_be_another_model() -> None:
    catalog = Catalog(CATALOG.services, defaults={"embed": "org/second"})
    assert catalog.resolve(None, "embed").spec.name == "org/second"
    assert catalog.resolve(None, "embed_tokens").spec.name == "org/fake"


def test_a_task_that_no_model_supports_is_an_error_that_lists_what_is_served() -> None:
    with pytest.raises(UnsupportedOperation, match=r"`embed_sparse`.*'org/fake' \(embed"):
        CATALOG.resolve(None, "embed_sparse")


async def test_a_model_refuses_a_task_that_it_does_not_support() -> None:
    with pytest.raises(UnsupportedOperation, match=r"org/reranker.*`embed`.*rerank, classify"):
        await CATALOG.resolve("org/reranker").run(EmbedJob(("a",)))
    with pytest.raises(UnsupportedOperation, match="org/fake"):
        await CATALOG.resolve("org/fake").run(ScoreJob((TextPair("a", "b"),)))


async def test_the_service_is_healthy_while_one_model_is() -> None:
    ill, well = FakeBackend(), FakeBackend()
    ill.error = Unavailable("gone")
    catalog = Catalog([service(SPEC, ill), service(SECOND, well)])
    reports = await catalog.health_by_model()
    assert {name: report.healthy for name, report in reports.items()} == {
        "org/fake": False,
        "org/second": True,
    }
    assert (await catalog.health()).healthy
    well.error = Unavailable("gone too")
    assert not (await Catalog([service(SPEC, ill), service(SECOND, well)]).health()).healthy
