"""The library `tei-client`, which asks `/info` what kind of model it talks to."""

from tei_client import HttpClient

from tests.clients.served import MODEL, TEXTS, Served, same, vectors


def test_embeds(served: Served) -> None:
    client = HttpClient(served.url)
    assert same(client.embed(TEXTS), vectors(*TEXTS))
    assert same(client.embed(TEXTS, prompt_name="query"), vectors(*TEXTS, prompt="query"))


async def test_embeds_async(served: Served) -> None:
    assert same(await HttpClient(served.url).async_embed(TEXTS), vectors(*TEXTS))


def test_tells_what_is_served(served: Served) -> None:
    assert HttpClient(served.url).info().server_model_id == MODEL
