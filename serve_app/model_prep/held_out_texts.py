"""Texts by which the loss of quantized models is measured: of other kinds than the calibration's.

They are phrases, sentences and paragraphs of Python's documentation of its language, which every
installation of Python has.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from pydoc_data.topics import topics

#: Texts of each kind: phrases are as long as queries, paragraphs as documents.
_TEXTS_PER_KIND = 400
_PHRASE_WORDS, _SENTENCE_WORDS, _PARAGRAPH_WORDS = (2, 8), (6, 40), (45, 220)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+(?=[A-Z(])")
_PHRASE_END = re.compile(r"(?<=[,.:;!?])\s+|\s+(?=\()")
_MARKUP = re.compile(r"[*`|]+")


def held_out_texts() -> list[str]:
    """Returns about 1,200 distinct texts, the same for one version of Python, in a fixed order."""
    paragraphs = list(_paragraphs())
    sentences = [s for paragraph in paragraphs for s in _SENTENCE_END.split(paragraph)]
    phrases = [phrase for sentence in sentences for phrase in _PHRASE_END.split(sentence)]
    kinds = (
        (phrases, _PHRASE_WORDS),
        (sentences, _SENTENCE_WORDS),
        (paragraphs, _PARAGRAPH_WORDS),
    )
    texts = [text for candidates, words in kinds for text in _select(candidates, *words)]
    return sorted(dict.fromkeys(texts), key=_shuffled)


def _paragraphs() -> Iterator[str]:
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            # Code, grammar and tables are indented or drawn.
            if not re.search(r"^ {6}|^\s*[+|>]|::=|^[-=*^~]{4}", block, re.MULTILINE):
                yield _MARKUP.sub("", " ".join(block.split()))


def _select(candidates: list[str], least_words: int, most_words: int) -> list[str]:
    texts = (candidate.strip(" -—") for candidate in candidates)
    fitting = {text for text in texts if least_words <= len(text.split()) <= most_words}
    return sorted(fitting, key=_shuffled)[:_TEXTS_PER_KIND]


def _shuffled(text: str) -> bytes:
    return sha256(text.encode()).digest()
