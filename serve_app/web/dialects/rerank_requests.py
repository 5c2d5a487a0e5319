"""What the formats of rerank routes share: fields, the job, and the ranking of its result."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serve_app.errors import EmptyInput, InvalidRequest
from serve_app.inputs import TextPair
from serve_app.jobs import ScoreJob
from serve_app.models import ModelSpec
from serve_app.results import ScoreResult
from serve_app.types import Lane, Truncation
from serve_app.web.dialects.extensions import USE_CACHE
from serve_app.web.dialects.task_support import require_task
from serve_app.web.schema.documents import DocumentsField
from serve_app.web.schema.fields import Body, BoolField, IntField, ModelField, TextField
from serve_app.web.schema.token_limit import TokenLimitField

MODEL = ModelField("model", "Name or alias of a reranker; the default one if absent.")
QUERY = TextField("query", "The text to compare the documents with.", required=True)
DOCUMENTS = DocumentsField(
    "documents", "The texts to rerank, or objects that hold them as `text`.", required=True
)
TOP_N = IntField("top_n", "Number of best documents to return; all by default.", minimum=1)
RETURN_DOCUMENTS = BoolField(
    "return_documents", "If true, results include their documents; false by default."
)
RAW_SCORES = BoolField(
    "raw_scores", "If true, scores are the model's logits; by default values from 0 to 1."
)
MAX_TOKENS_PER_DOC = TokenLimitField(
    "max_tokens_per_doc", "Token limit of a document; at least the model's own limit."
)


def require_reranker(spec: ModelSpec) -> None:
    """Checks that a model reranks texts.

    Raises:
        UnsupportedOperation: it doesn't.
    """
    require_task(spec, "rerank", f"The model {spec.name!r} embeds texts; it doesn't rerank them.")


def score_job(
    body: Body,
    documents: Sequence[Any],
    *,
    truncation: Truncation = "end",
    lane: Lane | None = None,
) -> ScoreJob:
    """Returns the job that scores the query of a request with each document.

    Args:
        body: the request, with the fields `query` and `use_cache`.
        documents: the texts of the documents.
        truncation: the treatment of pairs over the token limit.
        lane: the priority; None: chosen by the number of documents.

    Raises:
        InvalidRequest: a field is missing or has a wrong type.
    """
    query = QUERY(body)
    if query is None:
        raise InvalidRequest("`query` is missing. Send a string.", "query")
    if not query:
        raise EmptyInput("`query` is empty. Send at least one character.", "query")
    for i, document in enumerate(documents):
        if not isinstance(document, str):
            raise InvalidRequest(
                f"Text {i} is not a string but {type(document).__name__}. Send strings only.",
                "texts",
            )
    return ScoreJob(
        tuple(TextPair(query, document) for document in documents),
        task="rerank",
        lane=lane,
        use_cache=USE_CACHE(body) is not False,
        truncation=truncation,
    )


def ranking(
    result: ScoreResult, top_n: int | None = None, *, raw: bool = False
) -> list[tuple[int, Any]]:
    """Returns the index and the score of the best documents, by descending score.

    Documents of equal score are in the order of the request.

    Args:
        result: the scores of all documents.
        top_n: the number of documents; None or 0: all.
        raw: whether scores are the model's logits, instead of values from 0 to 1.
    """
    # Logits still differ where their sigmoids round to 1.
    order = np.argsort(-result.logits[:, 0], kind="stable")[: top_n or None]
    scores = (result.logits if raw else result.probabilities)[:, 0]
    return [(i, scores[i]) for i in order.tolist()]
