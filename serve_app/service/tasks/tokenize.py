"""Tokenizes texts, and decodes token ids."""

from serve_app.jobs import DecodeJob, TokenizeJob
from serve_app.results import TokenizerResult
from serve_app.service.task_context import TaskContext
from serve_app.service.validation import validate_inputs, validate_reply_tokens
from serve_app.types import Tokenization


async def tokenize(
    context: TaskContext, job: TokenizeJob, timeout_s: float
) -> TokenizerResult[Tokenization]:
    """Returns the tokens of each text, not truncated.

    Raises:
        InvalidRequest: a text, the number of texts, or the number of tokens is not valid.
    """
    inputs = context.replace_invalid(job.texts)
    validate_inputs(inputs, context.settings)
    prompt = "" if job.input_type is None else context.spec.prompt(job.input_type)
    texts = tuple(prompt + text for text in inputs)
    rows = await context.backend.tokenize(texts, job.add_special_tokens)
    validate_reply_tokens(sum(len(row.ids) for row in rows), context.settings)
    return TokenizerResult(rows)


async def decode(context: TaskContext, job: DecodeJob, timeout_s: float) -> TokenizerResult[str]:
    """Returns the text of each row of token ids.

    Raises:
        InvalidRequest: the ids are not in the vocabulary, or there are too many.
    """
    validate_inputs(job.token_ids, context.settings)
    validate_reply_tokens(sum(map(len, job.token_ids)), context.settings)
    rows = await context.backend.decode(job.token_ids, job.skip_special_tokens)
    return TokenizerResult(rows)
