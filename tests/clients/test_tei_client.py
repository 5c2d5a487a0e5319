"""The client library `tei-client`, which gets the type of the model from `/info`."""

from tei_client import HttpClient

from tests.clients.app_server import MODEL, TEXTS, AppServer, equal_vectors, expected_vectors


def test_embeds(server: AppServer) -> None:
    client = HttpClient(server.url)
    assert equal_vectors(client.embed(TEXTS), expected_vectors(*TEXTS))
    assert equal_vectors(
        client.embed(TEXTS, prompt_name="query"), expected_vectors(*TEXTS, prompt="query")
    )


async def test_embeds_async(server: AppServer) -> None:
    assert equal_vectors(await HttpClient(server.url).async_embed(TEXTS), expected_vectors(*TEXTS))


def test_info_has_the_model(server: AppServer) -> None:
    assert HttpClient(server.url).info().server_model_id == MODEL
