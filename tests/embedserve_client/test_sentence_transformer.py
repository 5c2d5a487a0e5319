"""`Client` in place of a `SentenceTransformer`: the same types, shapes and values."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from embedserve_client import Client, LocalModel
from embedserve_client.fallback import LocalOnly
from serve_app.config import MINILM
from serve_app.models import model_dir
from tests.embedserve_client.scripted_server import (
    SPACE,
    Action,
    Handler,
    ScriptedServer,
    running_server,
)

TEXTS = ["a text", "Zürich liegt am See; 北京 does not.", "word " * 400, "another", "a text"]
DIM, MAX_TOKENS = 32, 64
#: Each selects another type, shape or value of `encode`.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"convert_to_tensor": True},
    {"convert_to_numpy": False},
    {"normalize_embeddings": True},
    {"prompt_name": "query"},
    {"batch_size": 2},
    {"batch_size": 2, "show_progress_bar": True},
    {"truncate_dim": 5},
    {"truncate_dim": 5, "normalize_embeddings": True, "convert_to_tensor": True},
    {"device": "cpu", "convert_to_tensor": True},
    {"output_value": "sentence_embedding", "precision": "float32", "chunk_size": 3},
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """A model with fixed random weights, whose vectors aren't of unit length."""
    parts = tmp_path_factory.mktemp("parts")
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(str(model_dir(MINILM)))
    size: dict[str, Any] = {"hidden_size": DIM, "intermediate_size": 64, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **size)
    BertModel(config).save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    modules = [Transformer(str(parts), max_seq_length=MAX_TOKENS), Pooling(DIM)]
    prompts = {"query": "query: ", "document": "passage: "}
    return SentenceTransformer(modules=modules, device="cpu", prompts=prompts)


def serve(reference: SentenceTransformer) -> Action:
    """Responds like a service with this model."""

    def action(handler: Handler) -> None:
        if handler.path == "/tokenize":
            rows = reference.tokenizer(handler.body["inputs"], return_special_tokens_mask=True)
            columns = zip(rows["input_ids"], rows["special_tokens_mask"], strict=True)
            tokens = [
                [{"id": i, "special": bool(special)} for i, special in zip(*row, strict=True)]
                for row in columns
            ]
            handler.respond(200, tokens)
            return
        texts, input_type = handler.body["input"], handler.body.get("input_type")
        values = reference.encode(texts, prompt_name=input_type)
        headers = {
            "content-type": "application/octet-stream",
            "x-embedding-shape": f"{len(texts)},{DIM}",
            "x-embedding-space": SPACE,
        }
        handler.respond(200, values.astype("<f4").tobytes(), headers)

    return action


@pytest.fixture(scope="module", params=["service", "local"])
def client(
    request: pytest.FixtureRequest,
    reference: SentenceTransformer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """A client of a service with the model, and one that computes with it in this process."""
    if request.param == "local":
        folder = tmp_path_factory.mktemp("model")
        reference.save(str(folder))
        with Client("http://127.0.0.1:9", fallback=LocalOnly(LocalModel(str(folder)))) as client:
            yield client
        return
    with running_server() as server, Client(server.url) as client:
        server.info = {"max_tokens": MAX_TOKENS}
        server.script = Forever(serve(reference))
        yield client


class Forever(list[Action]):
    """A script that never ends."""

    def __init__(self, action: Action) -> None:
        super().__init__([action])

    def pop(self, index: Any = -1) -> Action:
        return self[0]


def assert_same(actual: Any, expected: Any) -> None:
    """Asserts that the type, the shape, the dtype and the values agree."""
    if isinstance(expected, list):
        assert isinstance(actual, list)
        for item, expected_item in zip(actual, expected, strict=True):
            assert_same(item, expected_item)
        return
    assert isinstance(actual, type(expected))
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize(
    "inputs",
    [TEXTS, TEXTS[0], tuple(TEXTS), np.array(TEXTS)],
    ids=["list", "text", "tuple", "array"],
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_encode(
    client: Client, reference: SentenceTransformer, inputs: Any, options: dict[str, Any]
) -> None:
    assert_same(client.encode(inputs, **options), reference.encode(inputs, **options))


def test_encode_of_no_texts(client: Client, reference: SentenceTransformer) -> None:
    assert client.encode([]).shape == reference.encode([]).shape
    assert client.encode([], convert_to_tensor=True).shape == (0,)
    assert client.encode([], convert_to_numpy=False, normalize_embeddings=True) == []


def test_encode_takes_the_names_and_the_order_of_its_arguments(
    client: Client, reference: SentenceTransformer
) -> None:
    assert_same(client.encode(TEXTS, "query"), reference.encode(TEXTS, "query"))
    assert_same(client.encode(inputs=TEXTS), reference.encode(inputs=TEXTS))
    assert_same(client.encode(sentences=TEXTS), reference.encode(TEXTS))
    assert_same(client.encode_query(TEXTS[0]), reference.encode_query(TEXTS[0]))
    assert_same(client.encode_document(TEXTS), reference.encode_document(TEXTS))


def test_results_may_be_changed(client: Client) -> None:
    for options in ({}, {"convert_to_tensor": True}, {"truncate_dim": 3}):
        client.encode(TEXTS, **options)[0] = 0.0


@pytest.mark.parametrize(
    ("options", "error_class", "message"),
    [
        ({"output_value": "token_embeddings"}, ValueError, "`output_value='token_embeddings'`"),
        ({"output_value": None}, ValueError, "`output_value=None`"),
        ({"precision": "int8"}, ValueError, "`precision='int8'`"),
        ({"prompt": "find: "}, ValueError, "`prompt='find: '`.*prompt_name"),
        ({"pool": {}}, ValueError, "`pool="),
        ({"task": "query"}, ValueError, "`task='query'`"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"normalise": True}, TypeError, "no option 'normalise'"),
    ],
)
def test_encode_rejects_by_name_what_it_cannot_honor(
    client: Client, options: dict[str, Any], error_class: type[Exception], message: str
) -> None:
    with pytest.raises(error_class, match=message):
        client.encode(TEXTS, **options)


def test_batch_size_is_the_number_of_texts_in_a_request() -> None:
    with running_server() as server, Client(server.url, concurrency=1) as client:
        client.encode(TEXTS, batch_size=2)
        client.encode(TEXTS)
        assert [len(body["input"]) for body in server.bodies] == [2, 2, 1, 5]


def test_progress_is_shown_on_request(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(server.url) as client:
        client.encode(TEXTS)
        assert capsys.readouterr().err == ""
        client.encode(TEXTS, batch_size=2, show_progress_bar=True)
    assert "100%" in capsys.readouterr().err


def test_dimension(client: Client, reference: SentenceTransformer) -> None:
    assert client.get_embedding_dimension() == reference.get_embedding_dimension() == DIM
    assert client.get_sentence_embedding_dimension() == DIM


def test_tokenize(client: Client, reference: SentenceTransformer) -> None:
    tokens, expected = client.tokenize(TEXTS), reference.preprocess(TEXTS)
    for name in ("input_ids", "attention_mask"):
        assert_same(tokens[name], expected[name])
    assert tokens["input_ids"].shape == (len(TEXTS), MAX_TOKENS)
    assert client.tokenize([])["input_ids"].shape == (0, 0)


def test_similarity(client: Client, reference: SentenceTransformer) -> None:
    vectors = client.encode(TEXTS)
    tensor = torch.tensor(np.asarray(vectors))
    for left, right in [
        (vectors, vectors),
        (vectors[0], vectors),
        (tensor, vectors[:2]),
        (list(tensor), list(tensor[:3])),
    ]:
        assert_same(client.similarity(left, right), reference.similarity(left, right))


def test_only_tensors_need_torch(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with Client(server.url) as client:
        assert client.encode(TEXTS, normalize_embeddings=True).shape == (5, 4)
        with pytest.raises(ImportError, match="pip install torch"):
            client.encode(TEXTS, convert_to_tensor=True)
