"""What a careful assistant does against injected instructions and leaks.

Two measures, both plain code. Before the model: texts are made readable (no hidden characters, no
look-alike letters), sentences that give orders to a model are taken out of documents, and question
and documents are fenced as data. After it: sentences that the documents do not bear out are taken
out of the answer, and so is personal data. Both cost useful answers; how many is to be measured.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from shared.assistant.identifiers import digits_of
from shared.assistant.records import Customer, split_sentences

LONGEST_QUESTION = 400
SUPPORT = 0.6
"""Share of a sentence's content words that the documents or the question must hold."""

_HIDDEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_LOOKALIKES = str.maketrans("аеіорсухһԁѕАЕІОРСТХВНМК", "aeiopcyxhdsAEIOPCTXBHMK")
_ORDERS = re.compile(
    r"\b(ignore|disregard|forget|override|system (?:note|message|prompt)|assistant|"
    r"you (?:must|are) now|instruction\w*|(?:say|print|repeat|reply|answer|respond|output|write)"
    r" (?:only|exactly|with|the word))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[a-z0-9][a-z0-9.,']*[a-z0-9]|[a-z0-9]")
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by can do does for from has have how i if in is it its may must "
        "no not of on or our so that the their them then there they this to up us was we what when "
        "which will with you your yes",
    )
)


def readable(text: str) -> str:
    """`text` without hidden characters, and with look-alike letters replaced."""
    return unicodedata.normalize("NFKC", _HIDDEN.sub("", text)).translate(_LOOKALIKES)


def without_orders(text: str) -> str:
    """A document without the sentences that address a model."""
    return " ".join(s for s in split_sentences(readable(text)) if not _ORDERS.search(s))


def screened(text: str, sources: Sequence[str], customers: Sequence[Customer]) -> str:
    """The sentences of an answer that `sources` bear out and that hold no personal data."""
    known = {w for source in sources for w in _words(source)}
    kept = [
        s
        for s in split_sentences(readable(text))
        if _supported(s, known) and not leaked(s, customers)
    ]
    return " ".join(kept)


def leaked(text: str, customers: Sequence[Customer]) -> tuple[str, ...]:
    """The protected values of `customers` that `text` tells, however they are spaced."""
    compact = re.sub(r"[\s\-().]", "", readable(text).casefold())
    numbers = digits_of(text)
    found = []
    for value in (v for c in customers for v in c.protected):
        wanted = re.sub(r"[\s\-().]", "", value.casefold())
        digits = digits_of(value)
        if wanted in compact or (len(digits) >= 8 and digits in numbers):
            found.append(value)
    return tuple(dict.fromkeys(found))


def _words(text: str) -> set[str]:
    return {w for w in _WORD.findall(text.casefold()) if w not in _EMPTY}


def _supported(sentence: str, known: set[str]) -> bool:
    words = _words(sentence)
    return bool(words) and len(words & known) >= SUPPORT * len(words)
