"""Which of the two models of an alias answers a client."""

from dataclasses import replace

import pytest

from serve_app.config import ApiKey, IngressSettings
from serve_app.service.alias import Alias, Canary, Requester
from serve_app.service.catalog import Catalog
from serve_app.service.embed import EmbedService
from tests.fakes import SPEC, FakeBackend

PRIMARY = EmbedService(SPEC, FakeBackend(), IngressSettings())
SECOND = EmbedService(
    replace(SPEC, name="org/second", aliases=(), space_id="beef-fp32"),
    FakeBackend(),
    IngressSettings(),
)


def key(name: str, models: tuple[str, ...] | None = None) -> ApiKey:
    return ApiKey(name=name, sha256="0" * 64, models=models)


def by_share(share: float, name: str = "words") -> Alias:
    return Alias(name, PRIMARY, Canary(SECOND, share))


def selected(alias: Alias, clients: range = range(2000)) -> set[int]:
    """Returns the clients that get the second model."""
    return {i for i in clients if alias.select(Requester(key(f"key-{i}"))) is SECOND}


def test_a_share_of_the_clients_gets_the_canary() -> None:
    assert selected(by_share(0)) == set()
    assert len(selected(by_share(1))) == 2000
    assert 0.25 < len(selected(by_share(0.3))) / 2000 < 0.35


def test_a_larger_share_keeps_the_clients_of_a_smaller_one() -> None:
    assert selected(by_share(0.1)) < selected(by_share(0.3))


def test_aliases_select_different_clients() -> None:
    first, second = selected(by_share(0.2, "words")), selected(by_share(0.2, "images"))
    assert len(first & second) < 0.5 * len(first)


def test_a_client_without_a_key_is_known_by_its_address() -> None:
    alias = by_share(0.5)
    services = {
        address: {alias.select(Requester(address=address)).spec.name for _ in range(3)}
        for address in map("10.0.0.{}".format, range(50))
    }
    assert all(len(names) == 1 for names in services.values())
    assert len({names.pop() for names in services.values()}) == 2


def test_the_choice_is_the_same_in_every_process() -> None:
    alias = by_share(0.5)
    names = [alias.select(Requester(key(name))).spec.name for name in ("alice", "bob", "carol")]
    assert names == ["org/fake", "org/second", "org/fake"]


def test_a_client_that_nothing_is_known_of_gets_the_primary_model() -> None:
    assert by_share(1).select(Requester()) is PRIMARY


def test_named_keys_get_the_canary() -> None:
    alias = Alias("words", PRIMARY, Canary(SECOND, keys={"alice"}))
    assert alias.select(Requester(key("alice"))) is SECOND
    assert alias.select(Requester(key("bob"))) is PRIMARY
    assert alias.select(Requester(address="10.0.0.1")) is PRIMARY


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_required_space_selects_the_model_that_has_it(share: float) -> None:
    alias = by_share(share)
    assert alias.select(Requester(key("alice"), space=SPEC.space_id)) is PRIMARY
    assert alias.select(Requester(key("alice"), space="f00d-bf16")) is PRIMARY
    assert alias.select(Requester(key("alice"), space="beef-fp32")) is SECOND
    assert alias.select(Requester(space="beef-fp32")) is SECOND


def test_a_space_of_both_models_leaves_the_choice_to_the_share() -> None:
    bf16 = EmbedService(
        replace(SPEC, name="org/bf16", aliases=(), space_id="f00d-bf16"),
        FakeBackend(),
        IngressSettings(),
    )
    alias = Alias("words", PRIMARY, Canary(bf16, 1))
    assert alias.select(Requester(key("alice"), space=SPEC.space_id)) is bf16


def test_a_key_that_may_not_use_the_canary_keeps_the_primary_model() -> None:
    limited = key("alice", (SPEC.name,))
    assert by_share(1).select(Requester(limited)) is PRIMARY
    assert by_share(1).select(Requester(limited, space="beef-fp32")) is PRIMARY
    assert by_share(1).select(Requester(key("bob", (SPEC.name, "org/second")))) is SECOND


def test_an_alias_is_a_name_of_its_model() -> None:
    alias = Alias("words", PRIMARY)
    catalog = Catalog([PRIMARY, SECOND], aliases=[alias])
    assert catalog.resolve("words") is PRIMARY
    assert (SPEC, "words") in catalog.names
    assert catalog.alias("words") is None  # so that its requests cost nothing more
    assert catalog.alias(SPEC.name) is None


def test_a_default_alias_is_that_of_embeddings_without_a_model() -> None:
    alias = Alias("words", SECOND, Canary(PRIMARY, 1), is_default=True)
    catalog = Catalog([PRIMARY, SECOND], aliases=[alias])
    assert catalog.resolve(None, "embed") is SECOND
    assert catalog.alias(None, "embed") is alias
    assert catalog.alias(None, "rerank") is None
    assert catalog.alias("words") is alias
    assert Catalog([PRIMARY, SECOND], aliases=[by_share(1)]).alias(None, "embed") is None
