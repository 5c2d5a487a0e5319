"""The calibration corpus: fixed texts of the kinds that people embed.

Queries, questions, titles, messages and paragraphs from nine fields and in eleven other languages.
They are generated from the lists below with fixed random numbers, the same on every machine and in
every version of Python. A change to them changes the quantization ranges, and with these every
`int8` and `uint8` vector: bump `RANGES_FORMAT` then.
"""

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_SEED = 20260101

#: For each field: topics, activities and statements.
_FIELDS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("sourdough bread", "a cast iron pan", "lentil soup", "fresh basil", "olive oil"),
        ("knead the dough by hand", "keep rice from sticking", "roast a whole chicken"),
        (
            "The crust should be dark brown and sing when it cools.",
            "Salt the water well before the pasta goes in.",
            "Leftovers keep for three days in the refrigerator.",
            "Whisk the eggs with sugar until the mixture turns pale and thick.",
        ),
    ),
    (
        ("a rental contract", "the supreme court", "copyright", "a witness", "the defendant"),
        ("appeal against a parking fine", "terminate a lease early", "register a trademark"),
        (
            "The tenant shall give notice in writing no later than three months before the end.",
            "The claim was dismissed for lack of evidence.",
            "Either party may withdraw from the agreement within fourteen days.",
            "Nothing in this section limits liability for gross negligence.",
        ),
    ),
    (
        ("high blood pressure", "a vaccine", "the immune system", "insulin", "a sprained ankle"),
        ("lower a child's fever", "read a blood test", "sleep better with asthma"),
        (
            "Patients in the control group received a placebo twice a day.",
            "See a doctor if the pain lasts for more than a week.",
            "The infection spreads through droplets and dirty surfaces.",
            "A dose of 20 mg was tolerated well by most adults over sixty.",
        ),
    ),
    (
        ("a hash table", "the garbage collector", "a REST API", "a deadlock", "unit tests"),
        ("merge two branches", "parse JSON in Python", "find a memory leak in a long-running job"),
        (
            "The function returns None when the key is missing, so check for it.",
            "def area(r):\n    return 3.14159 * r ** 2",
            "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
            "SELECT name, COUNT(*) FROM orders WHERE paid = 1 GROUP BY name;",
            "Requests are retried three times with an exponential pause between them.",
        ),
    ),
    (
        ("interest rates", "an index fund", "inflation", "a mortgage", "quarterly earnings"),
        ("open a savings account", "deduct travel expenses", "compare two pension plans"),
        (
            "Shares fell by 4.2 % after the company warned of weaker demand.",
            "The central bank left its rate unchanged at 3.75 percent.",
            "Revenue grew to $1.3 billion, up from $980 million a year ago.",
            "Invoices are due within thirty days of receipt.",
        ),
    ),
    (
        ("the Roman empire", "a medieval castle", "the printing press", "a peace treaty", "silk"),
        ("read old handwriting", "trace a family tree", "date a piece of pottery"),
        (
            "The city was besieged for eleven months before its walls gave way.",
            "Merchants carried spices and paper along the coast.",
            "In 1848 revolts broke out in a dozen capitals.",
            "Her letters tell of hunger, cold winters and long journeys by ship.",
        ),
    ),
    (
        ("a marathon", "the goalkeeper", "a tennis serve", "the world cup", "mountain bikes"),
        ("train for ten kilometres", "choose running shoes", "stretch after climbing"),
        (
            "They won 3-1 after extra time in front of forty thousand people.",
            "She set a new record in the 200 metres.",
            "The coach was sacked only hours after the defeat.",
            "Drink before you are thirsty, and slow down on the first hill.",
        ),
    ),
    (
        ("black holes", "photosynthesis", "tectonic plates", "a prime number", "sea turtles"),
        ("measure the speed of light", "prove that a series converges", "identify a mushroom"),
        (
            "Water expands when it freezes, which is why ice floats.",
            "The telescope found traces of methane in the planet's atmosphere.",
            "For every x > 0 there is a y such that f(y) = x.",
            "Bees tell each other the way to flowers by dancing.",
        ),
    ),
    (
        ("noise cancelling headphones", "a night train", "a refund", "the hotel lobby", "a tent"),
        ("change my delivery address", "travel light for two weeks", "cancel my subscription"),
        (
            "My parcel has not arrived yet, and nobody answers the phone.",
            "Great value for money, though the battery could last longer.",
            "The room was clean, quiet and only five minutes from the station.",
            "Never again!!! The zip broke on the first day :(",
        ),
    ),
)
_QUERIES = (
    "{topic}",
    "{topic} {other_topic}",
    "best {topic} 2024",
    "{topic} vs {other_topic}",
    "how to {activity}",
    "{topic} near me",
    "WHAT IS {topic}",
    "cheap {topic} for beginners",
)
_QUESTIONS = (
    "How do I {activity}?",
    "What has {topic} to do with {other_topic}?",
    "Why is {topic} so important, and for whom?",
    "Can you explain {topic} to a ten-year-old?",
    "Is it possible to {activity} without {topic}?",
    "Which is better, {topic} or {other_topic}?",
)
_TITLES = (
    "{topic}: a short guide",
    "From {topic} to {other_topic}",
    "Ten things nobody tells you about {topic}",
    "# {topic}\n\n- {other_topic}\n- how to {activity}",
)
_MESSAGES = (
    "Hi, could you tell me how to {activity}? Thanks a lot!",
    "Dear Sir or Madam, I write to you about {topic}. {statement} Kind regards, J. Miller",
    "lol just read about {topic} again 😂 {statement}",
    "Reminder: {activity} before Friday, then call me about {topic}.",
    "User: {statement}\nAssistant: I see. Shall we talk about {topic}?",
)
_PARAGRAPHS = (
    "{statement} {second} {third}",
    "Much has been written about {topic}. {statement} However, {topic} is not all there is: "
    "{second}",
    "{statement} In other words, if you want to {activity}, begin with {topic}. {second} {third} "
    "As so often, the simplest way is the best one, and patience helps more than tools.",
    "{topic} and {other_topic} are often named together. {statement} {second} On the other hand, "
    "those who try to {activity} soon find that it takes time. {third} All of it depends on where "
    "you are, on how much you know already, and on what you are willing to spend on {topic}.",
)
#: For each other language: topics and templates.
_LANGUAGES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("die Miete", "das Fahrrad", "die Steuererklärung", "der Wald", "eine Krankheit"),
        (
            "Wie lange dauert das mit {}?",
            "Im Herbst reden alle über {}.",
            "{} günstig kaufen",
            "Gestern stand etwas über {} in der Zeitung, aber niemand hat es gelesen.",
        ),
    ),
    (
        ("la boulangerie", "le chômage", "un roman policier", "la météo", "les impôts"),
        (
            "Où peut-on trouver {} ?",
            "Selon le ministre, {} reste une priorité cette année.",
            "{} pas cher",
            "Mon grand-père parlait souvent de {} pendant les longues soirées d'hiver.",
        ),
    ),
    (
        ("el seguro médico", "una guitarra", "la sequía", "el fútbol", "las elecciones"),
        (
            "¿Cuánto cuesta {}?",
            "{} es lo que más preocupa a los vecinos del barrio.",
            "noticias sobre {}",
            "Ayer hablamos de {} durante toda la cena, y al final nadie tenía razón.",
        ),
    ),
    (
        ("o mercado", "uma praia deserta", "a inflação", "o vestibular"),
        (
            "Onde fica {}?",
            "Todos os anos {} muda a vida de muita gente.",
            "{} preço hoje",
        ),
    ),
    (
        ("il treno", "una ricetta", "la scuola", "il vino rosso"),
        (
            "Quando arriva {}?",
            "Per molti {} è soltanto un ricordo d'infanzia.",
            "{} consigli utili",
        ),
    ),
    (
        ("погода", "квартира", "история", "новый закон", "здоровье"),
        (
            "Что такое {}?",
            "{} — это тема, о которой сегодня спорят все.",
            "{} купить недорого",
            "Вчера вечером мы долго говорили о том, что такое {} и зачем это нужно.",
        ),
    ),
    (
        ("机器学习", "高铁票", "中医", "股票市场", "红烧肉"),
        (
            "什么是{}？",
            "很多人认为{}会改变我们的生活。",
            "{} 价格",
            "昨天我们讨论了{}的问题，但是没有得到任何结论。",
        ),
    ),
    (
        ("地震", "新幹線", "夏目漱石の小説", "確定申告", "桜"),
        (
            "{}とは何ですか。",
            "最近は{}についてよく話します。",
            "{} おすすめ",
        ),
    ),
    (
        ("الطقس", "كرة القدم", "الاقتصاد", "التعليم"),
        (
            "ما هو {}؟",
            "يتحدث الناس كثيرا عن {} هذه الأيام.",
            "{} أخبار اليوم",
        ),
    ),
    (
        ("मौसम", "परीक्षा", "किसान", "क्रिकेट"),
        (
            "{} क्या है?",
            "आज के अखबार में {} के बारे में एक लेख है।",
            "{} समाचार",
        ),
    ),
    (
        ("날씨", "김치", "대학 입시", "부동산"),
        (
            "{}에 대해 알려 주세요.",
            "요즘 {} 때문에 걱정하는 사람이 많다.",
            "{} 추천",
        ),
    ),
)
#: English templates, and how many texts are generated from each group.
_ENGLISH = (
    (_QUERIES, 120),
    (_QUESTIONS, 80),
    (_TITLES, 40),
    (_MESSAGES, 60),
    (_PARAGRAPHS, 80),
)
_TEXTS_PER_LANGUAGE = 12
_EDGE_CASES = (
    "a",
    "42",
    "?",
    "OK",
    "2024-02-29T12:00:00Z",
    "+49 30 1234567",
    "👍🎉",
    "asdf qwer",
    "...",
)


def calibration_texts() -> list[str]:
    """Returns about 500 distinct texts."""
    rng = random.Random(_SEED)
    statements = [statement for _, _, statements in _FIELDS for statement in statements]
    texts = [*_english(rng), *statements, *_other_languages(rng), *_EDGE_CASES]
    return list(dict.fromkeys(texts))


def _english(rng: random.Random) -> Iterator[str]:
    for templates, count in _ENGLISH:
        for _ in range(count):
            topics, activities, statements = _choice(rng, _FIELDS)
            other_topics, _, other_statements = _choice(rng, _FIELDS)
            text = _choice(rng, templates).format(
                topic=_choice(rng, topics),
                other_topic=_choice(rng, other_topics),
                activity=_choice(rng, activities),
                statement=_choice(rng, statements),
                second=_choice(rng, statements),
                third=_choice(rng, other_statements),
            )
            yield text[:1].upper() + text[1:] if templates is _PARAGRAPHS else text


def _other_languages(rng: random.Random) -> Iterator[str]:
    for topics, templates in _LANGUAGES:
        for _ in range(_TEXTS_PER_LANGUAGE):
            yield _choice(rng, templates).format(_choice(rng, topics))


def _choice(rng: random.Random, items: Sequence[_T]) -> _T:
    # `random()` is the one method whose sequence Python promises to keep; `choice` is not.
    return items[int(rng.random() * len(items))]
