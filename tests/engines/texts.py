"""Fixed texts of many lengths and scripts."""

import random

_WORDS = (
    "the search index holds vectors of many short and long documents about rivers bridges music "
    "quantum networks cooking law history children weather stock markets and everything between"
).split()
_EDGE_CASES = [
    "Größenänderung für Übermut",
    "поиск по смыслу текста",
    "自然语言处理与向量检索",
    "検索エンジンのための文章ベクトル",
    "البحث الدلالي في النصوص",
    "חיפוש סמנטי בטקסט",
    "शब्दार्थ खोज और सदिश",
    "의미 기반 검색 서비스",
    "ค้นหาความหมายของข้อความ",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 thumbs",
    "naïve café — “quotes” … ‰ № ½",
    "e\u0301 and é, ﬁ and fi, Ａ and A",
    "\t tabs,\n new lines \u00a0and\u2003odd spaces ",
    " ",
    "a",
    "!?;:",
    "x" * 300,
    "https://example.org/a?b=c&d=%20#e",
    "SELECT * FROM t WHERE a <> 'b' -- comment",
]


def mixed_texts(n: int) -> list[str]:
    """Returns n texts of 1 to about 600 words, with scripts and emoji among them."""
    rng = random.Random(20260101)
    texts = list(_EDGE_CASES)
    while len(texts) < n:
        words = rng.choices(_WORDS, k=rng.choice([1, 3, 8, 20, 60, 150, 300, 600]))
        if rng.random() < 0.3:
            words.insert(rng.randrange(len(words) + 1), rng.choice(_EDGE_CASES))
        texts.append(" ".join(words))
    return texts[:n]
